"""Packaging. The metadata is here; pyproject.toml only configures the tools."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "python/sglang_nightjar/version.py").read_text()).group(1)


def requirements(name):
    """The lines of requirements/<name>.txt that are requirements."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-"))]


setup(
    name="sglang_nightjar",
    version=VERSION,
    description="SGLang with speculative decoding that adapts to the load, on GPUs and on plain CPUs",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    # policies/ and patches/ stand at the top of the repository, where people look for them.
    packages=[
        *find_packages("python"),
        "sglang_nightjar.patches",
        "sglang_nightjar.policies",
    ],
    package_dir={
        "": "python",
        "sglang_nightjar.patches": "patches",
        "sglang_nightjar.policies": "policies",
    },
    py_modules=["sglang_nightjar_plugin"],
    package_data={
        "sglang_nightjar": [
            *("demo/draft/*", "demo/*.json*", "demo/*.txt"),
            *("cpu/csrc/*", "observe/*.html", "sim/*.yaml"),
        ]
    },
    entry_points={
        "console_scripts": ["nightjar = sglang_nightjar.cli:main"],
        "sglang.srt.plugins": ["nightjar = sglang_nightjar_plugin:load"],
    },
    # Neither extra names sglang for CPUs: it must be installed with --no-deps there (see requirements/cpu.txt).
    extras_require={
        "cpu": requirements("cpu"),
        "cuda": requirements("cuda"),
        "test": requirements("test"),
    },
)
