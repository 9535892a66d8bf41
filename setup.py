"""Package metadata; pyproject.toml holds only the settings of tools."""

from pathlib import Path

from setuptools import find_packages, setup

REPORT = ["jinja2>=3.1"]
HF = ["huggingface_hub>=0.30", "gguf>=0.10", "sentencepiece>=0.2", "protobuf", *REPORT]
CHAT = ["starlette>=1.0", "uvicorn>=0.30", *HF]
EVAL = ["sacrebleu>=2.4", "rouge-score>=0.1.2"]
FAISS = ["faiss-cpu>=1.9"]
GCS = ["gcsfs>=2026.4", "google-cloud-storage>=3"]
EXTRAS = {  # with pytest 9.2, pytest-xdist 3.8 ignores the groups of --dist loadgroup
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    "plan": ["libtpu==0.0.42.*; sys_platform == 'linux'"],  # compiles for TPUs without having one
    "hf": HF,
    "eval": EVAL,
    "faiss": FAISS,
    "sweep": ["submitit>=1.5"],
    "wandb": ["wandb>=0.31"],
    "gcs": GCS,
    "report": REPORT,
    "chat": CHAT,
    "test": ["pytest>=8,<9.2", "pytest-xdist", "hypothesis>=6.100", "submitit>=1.5", *HF, *EVAL, *FAISS, *GCS, *CHAT],
    "dev": ["ruff", "pyright", "pre-commit"],
    "docs": ["mkdocs>=1.6.1,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2", "ruff"],
}

setup(
    name="memtx",
    version="0.1.0",
    description="A JAX/Flax research framework for Transformers with long-term memory",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url="https://github.com/memtx/memtx",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["transformer", "memory", "long context", "JAX", "Flax"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["memtx", "memtx.*"]), "memtx.configs"],
    package_dir={"memtx.configs": "configs"},
    package_data={"memtx": ["memory/cards/*.yaml", "cli/catalog.json", "*/*.html", "*/*.css", "py.typed"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "ml-collections>=1.1",
        "absl-py>=2",
        "numpy>=2",
        "tensorflow-datasets>=4.9.10",
        "array-record>=0.8",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "tokenizers>=0.22",
        "filelock>=3.13",
        "safetensors>=0.5",
        "rich>=13",
        "tensorboardX>=2.6",
        "matplotlib>=3.9",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["memtx=memtx.cli:main"], "pytest11": ["memtx-contract = memtx.contract.plugin"]},
)
