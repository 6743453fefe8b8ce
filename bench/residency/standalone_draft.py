"""A STANDALONE draft for the demo pair's target: its first layers, with its embedding and head.

It is as large as a draft of so many layers is, and drafts badly, for it was not trained to end there. The bench's
surges run at γ=0, where only its memory counts.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file


def cut(target: Path, layers: int, folder: Path) -> Path:
    """Write the checkpoint in ``target`` with its first ``layers`` layers alone to ``folder``, a new one; return it.

    Raises ValueError if it has fewer.
    """
    config = json.loads((target / "config.json").read_text())
    if not 1 <= layers <= config["num_hidden_layers"]:
        raise ValueError(f"{layers} layers: {target} has {config['num_hidden_layers']}")
    folder.mkdir(parents=True)
    for file in target.glob("*.json"):
        shutil.copy(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}, indent=1) + "\n")
    kept = {}
    for name, value in load_file(target / "model.safetensors").items():
        of_layer = re.match(r"model\.layers\.(\d+)\.", name)
        if of_layer is None or int(of_layer[1]) < layers:
            kept[name] = value
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
