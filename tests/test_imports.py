"""What a gateway before a scorer elsewhere imports: neither torch nor transformers."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "shieldgate.cli.serve",
        "shieldgate.cli.doctor_run",
        "shieldgate.scoring",
        "shieldgate.scoring.factory",
        "shieldgate.scoring.prompts",
        "shieldgate.scoring.unix_socket",
        "shieldgate.prompt",
    ],
)
def test_it_is_imported_without_torch(module: str) -> None:
    program = (
        f"import sys, {module}; "
        "print(*sorted({'torch', 'transformers', 'jinja2'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "\n"
