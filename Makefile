# make train, make test, make lab, make docs, make bench: each works as the first command in a fresh clone.
# `make PYTHON=python3.12 test` takes another Python.
PYTHON ?= python3
BIN = .venv/bin
SETUP = settings.ini setup.py pyproject.toml
# Bytecode is kept, even where the environment says no: with it, PyTorch starts in half the time.
export PYTHONDONTWRITEBYTECODE =

.PHONY: train lab test bench readme docs zip release clean

train: .venv/.installed
	$(BIN)/slowconv

lab: .venv/.installed-lab
	$(BIN)/jupyter lab --ServerApp.root_dir=. nbs/index.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

# Two lessons at a time, a thread each: threads that wait for each other are slower than none.
test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2 --timing
	$(BIN)/python -m pytest

# Measures every speed in benchmarks/README.md anew. Forty minutes, on a machine at rest.
bench: .venv/.installed-dev benchmarks/.peers
	$(BIN)/python benchmarks/epoch.py --save
	benchmarks/.peers/bin/python benchmarks/peers.py --save
	$(BIN)/python benchmarks/step.py --save

# An environment with the trainers that fit is compared with.
benchmarks/.peers: .venv/.uv $(SETUP)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $@
	$(BIN)/uv pip install --python $@/bin/python -e '.[peers]' || { rm -r $@; exit 1; }
	touch $@

readme: .venv/.installed-dev
	$(BIN)/python docs/readme.py

# What the site is made of is in docs/build.py.
docs: .venv/.installed-docs
	$(BIN)/python docs/build.py

# The site with the notebooks beside their pages, for a class without a network.
zip: docs
	$(BIN)/python -c 'import shutil; shutil.make_archive("docs/_build/slowconv", "zip", "docs/_build/html")'

# The wheel and the source archive in dist/, with the newest entry of the change log as their notes. The wheel
# is tried far from here, in an environment that has nothing else.
release: .venv/.installed-release
	rm -rf dist build
	$(BIN)/python -m build --quiet --installer uv
	$(BIN)/twine check --strict dist/*
	sed '1,/^## /d; /^## /,$$d' CHANGELOG.md > dist/NOTES.md
	folder=$$(mktemp -d) && $(BIN)/uv venv --quiet --python $(BIN)/python $$folder/env && \
	  $(BIN)/uv pip install --quiet --python $$folder/env/bin/python dist/*.whl && cd $$folder && \
	  env/bin/slowconv --epochs 1 --source sample && env/bin/slowconv-course course && \
	  env/bin/python -c "$$TRY" && rm -r $$folder
	ls dist

define TRY
from importlib.resources import files
from slowconv import ConvExplorer, get_best_model, load_images, top_edge
from slowconv.course import read_functions
from slowconv.puzzles import check
assert len((files("slowconv") / "sample" / "mnist_7.bytes").read_bytes()) == 28 * 28
assert get_best_model()(load_images("fashion_mnist", "test", "sample")[0][:9, None] / 255).shape == (9, 10)
assert "<canvas" in ConvExplorer(load_images("fashion_mnist", "test", "sample")[0][0] / 255, top_edge)._repr_html_()
exec(read_functions("01*.ipynb")["output_size_slow"] + "\n\n" + read_functions("99*.ipynb")["output_size"])
assert check(output_size, output_size_slow)
endef
export TRY

clean:
	rm -rf .venv benchmarks/.peers *.egg-info build dist _proc docs/_build

# uv installs in seconds where pip takes minutes, and environments share their files on disk.
.venv/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "slowconv needs Python 3.11 or newer as '$(PYTHON)'; name another with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	touch $@

.venv/.installed: .venv/.uv $(SETUP)
	$(BIN)/uv pip install --python $(BIN)/python -e .
	touch $@

.venv/.installed-%: .venv/.uv $(SETUP)
	$(BIN)/uv pip install --python $(BIN)/python -e '.[$*]'
	touch $@ .venv/.installed
