"""The library of the normalization study, with one folder for each subject.

`load_table` and `load_run` are the starting point of a notebook. They are imported when they are first used, so that
`import normstudy` alone is cheap.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normstudy.notebook import Run, load_run, load_table

__all__ = ["Run", "load_run", "load_table"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'normstudy' has no attribute {name!r}")
    from normstudy.cli import loading_modules

    with loading_modules():
        from normstudy import notebook

    return getattr(notebook, name)
