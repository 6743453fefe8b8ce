"""Nightjar is on where it was asked for and nowhere else. Each case needs a fresh interpreter."""

import subprocess
import sys

import pytest
from helpers.serving import clean_environment


def python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(**env), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_is_light() -> None:
    code = "import sys, sglang_nightjar; print([m for m in ('torch', 'sglang', 'zmq', 'numpy') if m in sys.modules])"
    assert python(code) == "[]"


def test_importing_the_package_prepares_sglang() -> None:
    code = """
import sglang_nightjar, sglang
from sglang.srt.utils import is_cpu
import torch
print(is_cpu() or torch.cuda.is_available())
"""
    assert python(code).splitlines()[-1] == "True"


def test_plain_sglang_is_unchanged() -> None:
    """SGLang loads its plugins without our having been asked for: no hook, and our package is not even imported."""
    code = """
import sys, torch
# What torchvision's wheel needs under a CPU build of torch; with plain SGLang the user has to see to it.
library = torch.library.Library("torchvision", "FRAGMENT")
if not torch.version.cuda:
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
load_plugins()
print(sorted(HookRegistry._patched), "sglang_nightjar" in sys.modules, "sglang_nightjar_plugin" in sys.modules)
"""
    assert python(code).splitlines()[-1] == "[] False True"


def test_with_the_package_the_hooks_are_in_place() -> None:
    code = """
import sglang_nightjar
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
load_plugins()
from sglang_nightjar import plugin
plugin.verify()
print("sglang.srt.server_args.ServerArgs.__post_init__" in HookRegistry._patched)
"""
    assert python(code).splitlines()[-1] == "True"


def test_importing_the_launcher_starts_nothing() -> None:
    """SGLang's spawned processes import the main module again."""
    assert python("import sys, sglang_nightjar.launch_server; print('sglang' in sys.modules)") == "False"


@pytest.mark.parametrize("name", ["run_scheduler_process", "run_detokenizer_process", "launch_server"])
def test_process_targets_pickle_under_our_name(name: str) -> None:
    """So that unpickling one in a spawned child imports our package, and with it prepares the child."""
    code = f"""
import pickle
from sglang_nightjar.agent import process
data = pickle.dumps(process.{name})
print(b"sglang_nightjar.agent.process" in data, pickle.loads(data) is process.{name})
"""
    assert python(code) == "True True"
