"""Cut the electrocardiogram that kdx ships out of SciPy 1.7.3.

Reads ``scipy/misc/ecg.dat`` of SciPy's wheel (five minutes of record 208 of the MIT-BIH Arrhythmia Database, 360
samples a second) and writes ``electrocardiogram.npz``: the sums of three samples each, 120 a second::

    pip download --no-deps --only-binary :all: --python-version 3.10 scipy==1.7.3
    unzip scipy-1.7.3-*.whl scipy/misc/ecg.dat
    python tools/cut_electrocardiogram.py scipy/misc/ecg.dat
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from packing import DATA, Arrays, checked, command

SHA256 = {"ecg.dat": "f20ad3365fb9b7f845d0e5c48b6fe67081377ee466c3a220b7f69f35c8958baf"}
SUMMED = 3
OUTPUT = DATA / "electrocardiogram.npz"


def cut(source: Path) -> Arrays:
    """The array of the file: sums of three values of the converter, after checking the SHA-256 of ``ecg.dat``."""
    raw = checked(source, SHA256["ecg.dat"])
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        values = archive["ecg"].astype(np.int16)  # 11 bits, 1024 is 0 mV, 200 steps are 1 mV
    return {"sums": values.reshape(-1, SUMMED).sum(1, dtype=np.int16)}


if __name__ == "__main__":
    sys.exit(command(cut, OUTPUT, __doc__, "SciPy's file ecg.dat"))
