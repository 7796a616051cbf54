"""The published CoFlow checkpoints, read into the `release` preset's model.

Key names of the reference: `Guowei-Zou/coflow-release: diffuser/models/{ma_temporal,temporal,ma_meanflow_wrapper}.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from marl_flow.coflow.model import CoFlowModel
from marl_flow.interfaces import UserError

_RENAMES = (
    (r"^model\.net\.time_mlp\.", "network.time_embedding."),
    (r"^model\.net\.returns_mlp\.", "network.return_embedding."),
    (r"^model\.net\.downs\.", "network.backbone.down."),
    (r"^model\.net\.ups\.", "network.backbone.up."),
    (r"^model\.net\.mid_block1\.", "network.backbone.middle.first."),
    (r"^model\.net\.mid_block2\.", "network.backbone.middle.second."),
    (r"^model\.net\.final_conv\.0\.block\.0\.", "network.backbone.final.conv."),
    (r"^model\.net\.final_conv\.0\.block\.2\.", "network.backbone.final.norm."),
    (r"^model\.net\.final_conv\.1\.", "network.backbone.output."),
    (r"^model\.self_attn\.(\d+)\.", r"network.backbone.blocks.\1."),
    (r"^(network\.backbone\.(?:down|up)\.\d+)\.0\.", r"\1.first."),
    (r"^(network\.backbone\.(?:down|up)\.\d+)\.1\.", r"\1.second."),
    (r"^(network\.backbone\.(?:down|up)\.\d+)\.2\.conv\.", r"\1.resample."),
    (r"\.blocks\.0\.block\.0\.", ".conv_in.conv."),
    (r"\.blocks\.0\.block\.2\.", ".conv_in.norm."),
    (r"\.blocks\.1\.block\.0\.", ".conv_out.conv."),
    (r"\.blocks\.1\.block\.2\.", ".conv_out.norm."),
    (r"(first|second)\.time_mlp\.1\.", r"\1.embed."),
    (r"\.residual_conv\.", ".skip."),
    (r"\.gamma$", ".gate"),
    (r"\.(query|key|value)_layer\.", r".\1."),
    (r"\.(query|key|value)_time_mlp\.1\.", r".\1_embedding."),
)
_INVERSE_LAYER = {"0": "first", "2": "second", "4": "last"}  # linear layers of the reference's Sequential


def convert(state: Mapping[str, Tensor], num_attention: int) -> dict[str, Tensor]:
    """Our names for a reference state dict.

    The reference builds one attention block more than it runs (`self_attn.3` at three levels): blocks from
    `num_attention` on are dropped. Nothing else is.
    """
    converted: dict[str, Tensor] = {}
    heads: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        if (block := re.match(r"^model\.self_attn\.(\d+)\.", key)) and int(block.group(1)) >= num_attention:
            continue
        if head := re.match(r"^inv_model\.(?:(\d+)\.)?([024])\.(weight|bias)$", key):
            agent, layer, parameter = head.groups()
            heads.setdefault(f"inverse.{_INVERSE_LAYER[layer]}.{parameter}", {})[int(agent or 0)] = value
            continue
        name = key
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        converted[name] = value
    return converted | {name: torch.stack([agents[i] for i in sorted(agents)]) for name, agents in heads.items()}


def load(model: CoFlowModel, state: Mapping[str, Tensor]) -> None:
    """Loads a reference state dict into a `release`-shaped model, strictly."""
    converted = convert(state, len(model.network.gates()))
    expected = model.state_dict()
    missing = sorted(expected.keys() - converted.keys())
    unknown = sorted(converted.keys() - expected.keys())
    shapes = [
        f"{name}: {tuple(converted[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in converted and converted[name].shape != value.shape
    ]
    if missing or unknown or shapes:
        raise UserError(
            "the published weights do not fit this model; "
            f"missing {missing[:4]}, unknown {unknown[:4]}, wrong shapes {shapes[:4]}. Use a checkpoint of the "
            "`release` preset with the same observation size, width, unet_multipliers and inverse_per_agent"
        )
    model.load_state_dict(converted)


def load_file(model: CoFlowModel, path: Path) -> None:
    """Loads a published checkpoint file: the running average (`ema`), which the reference acts with.

    Read without unpickling code (`weights_only=True`).
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: expected a torch checkpoint of plain tensors, could not read it: {error}") from error
    if not isinstance(content, dict) or "ema" not in content:
        found = sorted(content)[:6] if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: expected the entries 'step', 'model' and 'ema', found {found}")
    load(model, content["ema"])
