"""SGLang with adaptive speculative decoding: importing this package turns Nightjar on for the SGLang of this process.

Import it before ``sglang`` (on a machine without a GPU, SGLang can't even be imported otherwise). The import is
cheap: nothing of torch or SGLang is loaded until the program itself imports them.
"""

from sglang_nightjar.activation import activate
from sglang_nightjar.version import __version__

__all__ = ["__version__"]

activate()
