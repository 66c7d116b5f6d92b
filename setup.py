"""The optional C extension; everything else about the package is in pyproject.toml.

Where there is no compiler, the installation goes on without it and the kernels run in numpy.
"""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = "src/onefed/aggregate/kernels/c"

setup(
    ext_modules=[
        Extension(
            "onefed.aggregate.kernels._native",
            sources=[f"{SOURCES}/{name}.c" for name in ("module", "baseline", "avx2")],
            depends=sorted(str(header) for header in Path(SOURCES).glob("*.h")),
            # -ffp-contract=off: a fused multiply-add that we did not write would change the bits.
            extra_compile_args=[
                "-std=c11",
                "-O3",
                "-ffp-contract=off",
                "-fno-trapping-math",
                "-fno-math-errno",
                "-Wall",
                "-Wextra",
            ],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
