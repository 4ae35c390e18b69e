"""The commands of ``lcde``: train, eval, compare, and the conversion of files."""

import os
import sys

if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())  # a user's own methods, which their YAML files name, are modules there
