"""The commands `marl-flow data ...`: list, build, fetch, import, export, show and verify datasets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro
from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from marl_flow.datasets.store import EpisodeStore


T = TypeVar("T")
log = logging.getLogger(__name__)


class BadPath(Exception):
    """A path argument that means no path. Not a ValueError: tyro would replace its message by a general one."""


def _path(words: list[str]) -> Path:
    if not words[0].startswith("~"):  # the import below is a heavy one
        return Path(words[0])
    from marl_flow.files import user_path
    from marl_flow.interfaces import UserError

    try:
        return user_path(words[0])
    except UserError as error:
        raise BadPath(str(error)) from error


UserPath = Annotated[
    Path,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=_path,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    ),
]
"""A path argument; `~` is the home directory, also where the shell leaves it, as in --out=~/runs."""
DatasetName = Annotated[str, arg(metavar="DATASET")]

data = tyro.extras.SubcommandApp()


@data.command(name="list")
def data_list(
    *,
    origin: Annotated[str | None, arg(metavar="ORIGIN")] = None,
    suite: Annotated[str | None, arg(metavar="SUITE")] = None,
) -> int:
    """Lists every dataset: its origin, whether it is on this machine, its size, its mean return and the published one.

    Args:
        origin: Only datasets of this origin: native, omar, ogmarl or user.
        suite: Only datasets of this suite, e.g. mpe, mamujoco or smac.
    """
    from marl_flow.commands import dataset_table

    print(dataset_table.table(origin=origin, suite=suite))
    return 0


@data.command(name="build")
def data_build(
    dataset: Positional[DatasetName],
    /,
    *,
    episodes: Annotated[int | None, arg(metavar="INT")] = None,
    seeds: Annotated[int, arg(metavar="INT")] = 1,
    prey: Annotated[str | None, arg(metavar="NAME")] = None,
    force: bool = False,
) -> int:
    """Builds a native dataset: the same bytes on the same machine and library versions.

    Args:
        dataset: Dataset id, e.g. mpe/simple_spread/expert.
        episodes: Number of episodes per seed, instead of the recipe's; the published data have 40,000.
        seeds: Number of seeds to collect with, one after the other; the published data have 5.
        prey: Collect data of tag or world against this prey instead of the suite's own; see marl-flow data prey.
        force: Replace a dataset that exists already, once the new one is complete.
    """
    from marl_flow.commands.data import build_dataset

    store = build_dataset(dataset, episodes=episodes, seeds=seeds, force=force, prey=prey)
    _print_summary(store)
    return 0


@data.command(name="prey")
def data_prey(
    task: Positional[Annotated[str, arg(metavar="TASK")]], file: Positional[Annotated[UserPath, arg(metavar="FILE")]], /
) -> int:
    """Stores a published prey policy for a task, and prints the name that datasets, runs and evaluations use for it.

    Args:
        task: mpe/simple_tag or mpe/simple_world.
        file: The pretrained_adv_model.pt that OMAR published with its data; read without running code.
    """
    from marl_flow.commands import opponents

    prey = opponents.add(task, file)
    print(f"{prey.name}; data of {task} are collected or imported against it with --prey {prey.name}")
    return 0


@data.command(name="fetch")
def data_fetch(
    names: Positional[Annotated[tuple[str, ...], arg(metavar="DATASET [DATASET ...]")]],
    /,
    *,
    source: Annotated[str | None, arg(metavar="SOURCE")] = None,
    prey: Annotated[str | None, arg(metavar="NAME")] = None,
    keep_archive: bool = False,
) -> int:
    """Downloads published datasets, verifies and imports them. Started again, it continues where it stopped.

    Args:
        names: Dataset ids, e.g. omar/mpe/simple_spread/expert-v1. Name those of one archive together: it is downloaded
            once.
        source: Which published file, where there are several; by default one that is on this machine, else one that can
            be downloaded.
        prey: The prey that data of tag and world were collected against, where the archive does not contain it; see
            marl-flow data prey.
        keep_archive: Keep the downloaded archive, which holds every quality of a task.
    """
    from marl_flow.commands.data import fetch_datasets
    from marl_flow.interfaces import UserError

    if not names:
        raise UserError("name at least one dataset, e.g. omar/mpe/simple_spread/expert-v1; see: marl-flow data list")
    for store in fetch_datasets(names, source=source, prey=prey, keep_archive=keep_archive):
        _print_summary(store)
    return 0


@data.command(name="import")
def data_import(
    layout: Positional[Annotated[str, arg(metavar="LAYOUT")]],
    source: Positional[Annotated[UserPath, arg(metavar="PATH")]],
    dataset: Positional[DatasetName],
    /,
    *,
    prey: Annotated[str | None, arg(metavar="NAME")] = None,
) -> int:
    """Imports data in a published layout as a dataset, completely or not at all.

    Data of a single robot in the d4rl or minari layout with its states (infos/qpos and infos/qvel) can be imported as
    data of agents that share the robot, under an id such as user/mamujoco/2halfcheetah/NAME-v1.

    Args:
        layout: omar, madiff, vault, d4rl or minari.
        source: The folder of one dataset (omar, madiff, vault, minari) or the file (d4rl).
        dataset: The id to keep it under: a published one such as omar/mpe/simple_tag/expert-v1, or a name of your own,
            user/SUITE/TASK/NAME-v1.
        prey: The prey that data of tag and world were collected against, where the files do not say so; see
            marl-flow data prey.
    """
    from marl_flow.commands.data import import_dataset, require_own_name

    require_own_name(dataset)
    _print_summary(import_dataset(layout, source, dataset, prey=prey))
    return 0


@data.command(name="export")
def data_export(
    dataset: Positional[DatasetName],
    layout: Positional[Annotated[str, arg(metavar="LAYOUT")]],
    target: Positional[Annotated[UserPath, arg(metavar="PATH")]],
    /,
) -> int:
    """Writes a dataset in a published layout; importing it again gives the same data.

    Args:
        dataset: Dataset id, e.g. mpe/simple_spread/expert.
        layout: madiff, d4rl or minari.
        target: The folder (madiff, minari) or file (d4rl) to write; it must not exist yet.
    """
    from marl_flow import datasets
    from marl_flow.datasets import formats

    formats.export_dataset(layout, datasets.load(dataset), target)
    print(target)
    return 0


@data.command(name="show")
def data_show(dataset: Positional[DatasetName], /) -> int:
    """Prints a dataset's card: episodes, steps, returns, ranges, provenance, licence, how to cite, and its last replay.

    Args:
        dataset: Dataset id, e.g. mpe/simple_spread/expert.
    """
    from marl_flow import datasets
    from marl_flow.datasets import catalog
    from marl_flow.datasets.replay import passport as verify

    print(verify.show(datasets.require(dataset), str(catalog.find(dataset).dataset_id)))
    return 0


@data.command(name="verify")
def data_verify(
    names: Positional[Annotated[tuple[str, ...], arg(metavar="[DATASET ...]")]] = (),
    /,
    *,
    steps: Annotated[int | None, arg(metavar="INT")] = None,
) -> int:
    """Reads every byte of datasets, replays their steps in their environments, and renews their passports.

    Args:
        names: Dataset ids; by default all on this machine.
        steps: Replay only this many steps, spread evenly, instead of all.
    """
    from marl_flow import datasets
    from marl_flow.commands.data import verify_dataset
    from marl_flow.datasets import catalog
    from marl_flow.interfaces import UserError

    known = (*catalog.CATALOG, *catalog.user_datasets())
    wanted = names or tuple(name for name in known if catalog.folder_of(name).exists())
    if not wanted:
        raise UserError(
            f"no dataset in {catalog.data_root()}; build one: marl-flow data build mpe/simple_spread/expert"
        )

    def verify(name: str) -> None:
        passport = verify_dataset(datasets.require(name), str(catalog.find(name).dataset_id), steps)
        print(f"{passport['dataset_id']}: whole, digest {passport['digest'][:16]}; {passport['replay']['message']}")

    for_each(wanted, verify)
    return 0


def for_each(items: Sequence[T], action: Callable[[T], None]) -> None:
    """Calls `action` with every item, also after one has failed; at the end one error says which failed and why.

    That is a UserError with all messages, or what was raised first where anything else was.
    """
    from marl_flow.interfaces import UserError

    messages: list[str] = []
    unexpected: Exception | None = None
    for item in items:
        try:
            action(item)
        except BrokenPipeError:  # nobody reads our output any more
            raise
        except Exception as error:
            if not isinstance(error, UserError):
                unexpected = unexpected or error
            text = str(error) or type(error).__name__
            messages.append(text if str(item) in text or len(items) == 1 else f"{item}: {text}")
    if unexpected is not None:
        log.error("failed:\n%s", "\n".join(messages))
        raise unexpected
    if messages:
        raise UserError("\n".join(messages))


def _print_summary(store: EpisodeStore) -> None:
    mean = f"with mean team return {store.team_returns().mean():.1f}"
    print(f"{store!r}\n{mean}; see: marl-flow data show {store.dataset_id}")
