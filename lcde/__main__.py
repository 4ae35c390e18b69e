"""``lcde``: train, evaluate, compare methods, and convert files of embeddings and networks."""

import runpy
import sys
from pathlib import Path

# In the source tree the scripts stand beside the package, in a wheel inside it.
SCRIPTS = next(folder for folder in (Path(__file__).parent / "scripts", Path(__file__).parents[1]) if folder.is_dir())


def main() -> None:
    """Run the command that the first argument names."""
    if sys.argv[1:2] in (["train"], ["eval"], ["compare"]):
        # As `python train.py`: what Lightning and Hydra start again is the script.
        sys.argv = [str(SCRIPTS / f"{sys.argv[1]}.py"), *sys.argv[2:]]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        from lcde.commands.convert import main as convert

        convert()


if __name__ == "__main__":
    main()
