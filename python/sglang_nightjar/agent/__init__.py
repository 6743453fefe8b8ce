"""The part of Nightjar that runs inside SGLang's processes."""
