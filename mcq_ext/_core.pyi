from typing import Any

def __getattr__(name: str) -> Any: ...  # Cython checks its own types; mcq_ext.cpu is the typed surface.
