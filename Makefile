# The front door: every target works on a fresh clone, from git, make, python3 and a package index.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: fig4 curvature phase-diagram cascades lazy addition test soak benchmark lock clean

fig4: $(VENV)/ready  ## train the run of Fig. 4 (or go on with it), draw it, check its numbers
	$(RUN) -m experiments.figure fig4

curvature: $(VENV)/ready  ## measure and draw the curvature of the run of Fig. 4 and of an image network
	$(RUN) -m experiments.figure curvature

phase-diagram: $(VENV)/ready  ## fill, reduce and draw the papers' phase diagrams at small scale, on all cores
	$(RUN) -m experiments.figure phase_amplitude_period phase_width_rate phase_static phase_losses --launcher=local

cascades: $(VENV)/ready  ## find, measure and draw the instabilities of the run of Fig. 4, on all cores
	$(RUN) -m experiments.figure cascades cascade_rates --launcher=local

lazy: $(VENV)/ready  ## what survives in the linearised network, and how lazy a width is, on all cores
	$(RUN) -m experiments.figure kernel_width lazy_rich --launcher=local

addition: $(VENV)/ready  ## the third paper: what a classical network forgets, and one of clauses does not
	$(RUN) -m experiments.figure addition --launcher=local

test: $(VENV)/ready  ## every check
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest --numprocesses=2 --dist=loadfile

soak: $(VENV)/ready  ## what takes long: kills, full disks, damage at every file, with counts; SOAK_SEED=N for other moments
	$(RUN) -m pytest -m soak --numprocesses=2

benchmark: $(VENV)/ready  ## speed, memory and other solvers; those in PyTorch where they are installed
	$(RUN) -m experiments.benchmark fig4
	$(RUN) -m experiments.benchmark curvature
	$(RUN) -m experiments.benchmark sweep
	$(RUN) -m experiments.benchmark stability
	$(RUN) -m experiments.benchmark images

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dlf needs Python 3.11 or later: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev,notebooks,ntk]'
	@# without its dependencies, which bring 1.8 GB of TensorFlow for a part that is not used
	$(RUN) -m pip install --quiet --no-deps neural-tangents==0.6.5
	@touch $@

lock:  ## renew constraints.txt for all supported versions of Python (needs uv)
	uv pip compile --universal --python-version 3.11 --extra dev --extra notebooks --extra ntk \
		--no-annotate --no-emit-index-url --custom-compile-command 'make lock' \
		--upgrade setup.cfg --output-file constraints.txt

clean:  ## remove the environment, not the results
	rm -rf $(VENV)
