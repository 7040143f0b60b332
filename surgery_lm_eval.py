"""`surgery` among lm-evaluation-harness' models, wherever both are installed.

The harness knows the models of a table in `lm_eval.models` and looks for no others: no entry points, as of 0.4.13. So
`surgery-lm-eval.pth`, which is installed beside the packages, has Python import this module when it starts; and as soon
as the harness makes its table, if ever, a line is added. Nothing else is imported here: no program should start later.
"""

import sys

TABLE = "lm_eval.models"
NAME, CLASS = "surgery", "pipeline.tasks.harness:SurgeryLM"


class TableFinder:
    """Finds the harness' table where it would be found anyway, and has `register` called once it is made."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        if name != TABLE:
            return None
        sys.meta_path.remove(TableFinder)  # type: ignore[arg-type]
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: object) -> None:
                execute(module)  # type: ignore[arg-type]
                register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Make `surgery` known to the harness; its class is imported when it is asked for."""
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=CLASS)


if TABLE in sys.modules:
    register()
else:
    sys.meta_path.insert(0, TableFinder)  # type: ignore[arg-type]
