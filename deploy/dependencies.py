"""Print the dependencies of some extras, one a line, so that an image can cache them."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
lines = [*project["dependencies"], *(line for extra in sys.argv[1:] for line in extras[extra])]
sys.stdout.write("\n".join(lines) + "\n")
