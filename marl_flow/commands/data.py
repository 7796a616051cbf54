"""Names to datasets: build, fetch, import, verify and open them, and hand them to training when they fit.

This is where data meet environments, which know nothing of each other.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from marl_flow import datasets, envs
from marl_flow.commands import opponents
from marl_flow.commands.opponents import environment
from marl_flow.commands.robots import shared_robot
from marl_flow.datasets import catalog, native, specs
from marl_flow.datasets.replay import passport
from marl_flow.datasets.replay.check import replay
from marl_flow.datasets.store import EpisodeStore, open_store
from marl_flow.datasets.windows import WindowSampler, return_percentiles
from marl_flow.datasets.writer import AlreadyThere, refuse_foreign, remove_store, replace_store
from marl_flow.interfaces import Restorable, TaskSpec, TransitionChecker, UserError, VectorEnv
from marl_flow.normalize import Normalizers
from marl_flow.progress import progress_bar
from marl_flow.training import TrainingData

log = logging.getLogger(__name__)

REPLAYED = 2048
"""Steps of a dataset that are played again before anything is trained on it."""


def build_dataset(
    dataset_id: str,
    *,
    episodes: int | None = None,
    seeds: int = 1,
    force: bool = False,
    prey: str | None = None,
) -> EpisodeStore:
    """Builds a native dataset under the data root, with a progress bar; `force` replaces one that is there.

    prey: name of the opponent to collect against (`opponents.names`) in tag and world, instead of the task's own.
    """
    identity = catalog.find(dataset_id).dataset_id
    name = str(identity)
    if identity.task_id in envs.TASKS:  # an unknown prey is refused before anything is written
        environment(_against(identity.task_id, prey), 1)
    folder = catalog.folder_of(name)
    if folder.exists() and not force:
        raise AlreadyThere(f"{name} is in {folder} already; build it again with --force")
    if folder.exists():
        refuse_foreign(folder)
    new_folder = folder.with_name(f".{folder.name}.fresh-{os.getpid()}") if folder.exists() else folder
    with progress_bar(f"building {name}", "episodes") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        def make_env(task_id: str, num_envs: int, device: torch.device) -> VectorEnv:
            return environment(_against(task_id, prey), num_envs, device)

        native.build(name, new_folder, make_env, episodes=episodes, seeds=seeds, progress=show)
    if new_folder != folder:
        try:
            replace_store(folder, new_folder)
        except UserError:
            if new_folder.exists():
                remove_store(new_folder)
            raise
    return _stamped(datasets.load(name), folder)


def fetch_datasets(
    names: Sequence[str], *, source: str | None = None, prey: str | None = None, keep_archive: bool = False
) -> list[EpisodeStore]:
    """Downloads, unpacks and imports published datasets, with progress bars; refuses, before any download, those that
    are not published, and tag and world data whose prey is neither named nor in the archive. What is here already is
    passed over, and said to be. Archives are deleted at the end, once for all datasets they hold."""
    from marl_flow.datasets.remote import fetch
    from marl_flow.datasets.remote.download import Progress

    wanted = []
    for name in dict.fromkeys(str(catalog.find(name).dataset_id) for name in names):
        chosen = fetch.plan(name, source=source)
        if (folder := catalog.folder_of(name)).exists():
            log.info("%s is in %s already", name, folder)
            continue
        if chosen.file.layout == "vault":  # the converted copies leave the prey out
            _prey_of_import(name, prey)
        wanted.append(name)

    def bar(title: str) -> Progress:
        shown = progress_bar(title, "B", scale=True)

        def show(done: int, total: int | None) -> None:
            shown.total = total
            shown.update(done - shown.n)
            if done == total:
                shown.close()

        return show

    stores, fetched = [], []
    for name in wanted:
        with fetch.fetch_dataset(name, source=source, progress=bar) as dataset:
            fetched.append(dataset)
            opponent = prey or _prey_beside(catalog.parse(name).task_id, dataset.unpacked)
            layout, folder, provenance = dataset.file.layout, dataset.source, dataset.provenance
            stores.append(import_dataset(layout, folder, name, prey=opponent, provenance=provenance))
    fetch.clean_up(fetched, keep_archive=keep_archive)
    return stores


def _prey_beside(task_id: str, unpacked: Path) -> str | None:
    """Name of the prey that an archive of tag or world carries, once it is kept; None where it carries none."""
    if task_id not in envs.TASKS or envs.spec(task_id).opponent is None:
        return None
    files = sorted(unpacked.rglob(opponents.PUBLISHED_FILE))
    if len(files) > 1:
        raise UserError(f"expected one {opponents.PUBLISHED_FILE} of {task_id} below {unpacked}, found {len(files)}")
    return opponents.add(task_id, files[0]).name if files else None


def require_own_name(dataset_id: str) -> None:
    """Raises, with the form of an id of one's own, for an id that cannot be imported under."""
    try:
        catalog.find(dataset_id)
    except UserError as error:
        published = dataset_id.partition("/")[0] in catalog.ORIGINS and not dataset_id.startswith("user/")
        raise UserError(
            f"cannot import as {dataset_id!r}; data of your own are named user/SUITE/TASK/NAME-v1, for example "
            "user/mpe/simple_spread/mine-v1" + (f"; of published data: {error}" if published else "")
        ) from error


def import_dataset(
    layout: str,
    source: Path,
    dataset_id: str,
    *,
    prey: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> EpisodeStore:
    """Reads published files into the data root under an id of origin omar, ogmarl or user; verifies and stamps them.

    prey: name of the opponent that data of tag and world were collected against (`opponents.names`); a file that
    carries its own task record says it itself.
    """
    from marl_flow.datasets import formats

    identity = catalog.find(dataset_id).dataset_id
    name, task_id, folder = str(identity), identity.task_id, catalog.folder_of(dataset_id)
    if identity.origin == "native":
        raise UserError(f"{name} is built, not imported; import under a name such as user/{task_id}/mine-v1")
    record = formats.record_in(layout, source)
    if record is not None:
        spec: TaskSpec | None = record.spec
        _check_record(name, record.spec.task_id, record.origin, prey)
        if task_id in envs.TASKS:  # a prey that is not here is refused before anything is written
            opponents.opponent(task_id, record.spec.opponent)
    elif layout in formats.CARRY_SPEC and task_id not in specs.TASKS:
        spec = None  # implied by the files
        _prey_of_import(name, prey)
    else:
        spec = dataclasses.replace(specs.known_spec(task_id), opponent=_prey_of_import(name, prey))
    store = formats.import_dataset(
        layout,
        source,
        folder,
        dataset_id=name,
        spec=spec,
        provenance=dict(provenance or {}),
        implied_task_id=task_id,
        shared=None if record is not None else shared_robot(task_id),
    )
    return _stamped(store, folder)


def _check_record(name: str, task_id: str, exported_from: Mapping[str, Any], prey: str | None) -> None:
    """Raises unless files that were exported here may be imported under this name: their task's, and never that of a
    publication they do not come from."""
    identity, former = catalog.parse(name), str(exported_from.get("dataset_id"))
    if task_id != identity.task_id:
        raise UserError(
            f"the files hold data of {task_id}, not of {identity.task_id}; import them as user/{task_id}/NAME-v1"
        )
    if identity.origin != "user" and not former.startswith(f"{identity.origin}/"):
        raise UserError(
            f"the files were exported from {former}, not from {name}: data of one origin never stand in for another's "
            f"data; import them as user/{task_id}/NAME-v1"
        )
    if prey is not None:
        raise UserError(f"{name}: the files say themselves what their data were collected against; leave --prey out")


def _prey_of_import(name: str, prey: str | None) -> str | None:
    """The opponent of data to be imported, where their task has one; it must be named, and be here."""
    task_id = catalog.parse(name).task_id
    if task_id not in envs.TASKS or envs.spec(task_id).opponent is None:
        if prey is not None:
            raise UserError(f"{name}: {task_id} has no prey; leave --prey out")
        return None
    if prey is None:
        raise UserError(
            f"{name}: expected the name of the prey its data were collected against, found none; keep the "
            f"{opponents.PUBLISHED_FILE} published beside the data with `marl-flow data prey {task_id} FILE`, then "
            f"give its name with --prey; there are {', '.join(opponents.names(task_id))}"
        )
    opponents.opponent(task_id, prey)
    return prey


def open_dataset(dataset_id: str) -> EpisodeStore:
    """The dataset, verified; a native one that is absent is built first, by whichever process is done first."""
    name = str(catalog.find(dataset_id).dataset_id)
    if name in native.RECIPES and not catalog.folder_of(name).exists():
        log.info("%s is not in %s yet: building it", name, catalog.data_root())
        try:
            return build_dataset(name)
        except AlreadyThere:
            log.info("%s was built meanwhile by another process: opening that", name)
    return datasets.load(name)


def verify_dataset(folder: Path, dataset_id: str, steps: int | None = None) -> dict[str, Any]:
    """The passport of the dataset of this id in a folder, written again after every check, that many steps (None: all)
    played again where the task's environment is here; a fault, or steps that give something else, are a UserError."""
    spec = open_store(folder, verify=False, dataset_id=dataset_id).spec
    return passport.verify(folder, replayed_in if _can_replay(spec) else None, steps)


def _stamped(store: EpisodeStore, folder: Path) -> EpisodeStore:
    """A store that was just made, with its passport; one that does not fit its environment stays, and is said to."""
    try:
        verify_dataset(folder, store.dataset_id)
    except passport.DoesNotFit as error:
        log.warning("%s. It is kept, and refused for training.", error)
    return store


def require_replay(store: EpisodeStore) -> None:
    """Raises a UserError where a sample of the store's steps, played again, gives something else than what is stored.

    A task whose environment is not here, or cannot begin in the middle of an episode, leaves a warning.
    """
    spec = store.spec
    if not _can_replay(spec):
        log.warning("%s was not checked: no environment of %s can replay it here", store.dataset_id, spec.task_id)
        return
    outcome = replay(store, lambda num_envs: replayed_in(spec, num_envs), transitions=REPLAYED)
    if not outcome.fits:
        raise UserError(f"{store.dataset_id} {outcome.message}")
    log.info("%s %s", store.dataset_id, outcome.message)


def _can_replay(spec: TaskSpec) -> bool:
    return envs.knows(spec.task_id) and isinstance(environment(spec, 1), Restorable | TransitionChecker)


def replayed_in(spec: TaskSpec, num_envs: int) -> Restorable | TransitionChecker:
    """The environment a store of this task is played again in; where it is stepped, in double precision."""
    stepped = isinstance(environment(spec, 1), Restorable)
    env = environment(spec, num_envs, "cpu", torch.float64 if stepped else None)
    assert isinstance(env, Restorable | TransitionChecker), f"{spec.task_id} cannot begin in the middle of an episode"
    return env


def _against(task_id: str, prey: str | None) -> TaskSpec:
    """The task against the opponent of that name; None: its own."""
    spec = envs.spec(task_id)
    if prey is None:
        return spec
    if spec.opponent is None:
        raise UserError(f"{task_id} has no prey: leave --prey out")
    return dataclasses.replace(spec, opponent=prey)


def require_task(stored: TaskSpec, offered: TaskSpec, dataset_id: str) -> None:
    """Raises unless the environment is of the task that the data are of."""
    before, after = stored.to_json(), offered.to_json()
    names = dict.fromkeys([*before, *after])
    found = [f"{n}: {before.get(n)} there, {after.get(n)} here" for n in names if before.get(n) != after.get(n)]
    if found:
        raise UserError(
            f"{dataset_id}: the data are of another {stored.task_id} than this environment ({'; '.join(found)}); "
            "record them again, or name the environment they were recorded in"
        )


def training_data(store: EpisodeStore) -> TrainingData:
    """A store as training sees it; one that does not fit its environment is refused."""
    assert store.digest is not None, "only a store on disk identifies what a run was trained on"
    if envs.knows(store.spec.task_id):
        require_task(store.spec, environment(store.spec, 1).spec, store.dataset_id)
    require_replay(store)
    return TrainingData(
        dataset_id=store.dataset_id,
        digest=store.digest,
        spec=store.spec,
        fit_normalizers=lambda kind, discount: Normalizers.fit(kind, store, discount=discount),
        return_percentiles=lambda discount: return_percentiles(store, discount),
        make_sampler=lambda window, device: WindowSampler(store, window, device),
    )
