"""Lets these tests build the Hugging Face directories that the tests of the weights build."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "weights"))
