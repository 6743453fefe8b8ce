"""The demo pair's draft in a larger body: its MLP so many times as wide, with zeros.

Zeros add nothing, so it drafts what the demo draft does, with more memory and more time. The bench's surges run at γ=0,
where only its memory counts.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_MLP = "midlayer.mlp"


def widen(draft: Path, times: int, folder: Path) -> Path:
    """Write the checkpoint in ``draft`` with an MLP ``times`` as wide to ``folder``, a new one; return it."""
    config = json.loads((draft / "config.json").read_text())
    weights = load_file(draft / "model.safetensors")
    wide = times * config["intermediate_size"]
    for name in ("gate_proj", "up_proj"):
        narrow = weights[f"{_MLP}.{name}.weight"]
        weights[f"{_MLP}.{name}.weight"] = torch.cat([narrow, narrow.new_zeros(wide - len(narrow), narrow.shape[1])])
    narrow = weights[f"{_MLP}.down_proj.weight"]
    zeros = narrow.new_zeros(narrow.shape[0], wide - narrow.shape[1])
    weights[f"{_MLP}.down_proj.weight"] = torch.cat([narrow, zeros], dim=1)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": wide}, indent=1) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
