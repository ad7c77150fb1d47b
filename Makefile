# Each line calls tools/; README.md says how to do the same without make.
PYTHON ?= python3
RUN := .venv/bin/python
HAVE = @$(PYTHON) -c "" 2>/dev/null || { echo "$(PYTHON) does not run. Install Python 3.11, 3.12 or 3.13, or say which: make PYTHON=..."; exit 1; }

.PHONY: help book test lab edit notebooks check mutants seeds ledger bench address lock clean env

help: ## these lines
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

book: ## make a small environment (no torch) and build the book into _build/html
	$(HAVE)
	@$(PYTHON) tools/environment.py book
	@$(RUN) tools/assets.py
	@.venv/bin/jupyter-book build . -W -n --keep-going
	@echo "The book is _build/html/index.html: open it in a browser. No server is needed."

test: ## install what is missing, and run every test
	$(HAVE)
	@$(PYTHON) tools/environment.py test
	@$(RUN) tools/assets.py
	@$(RUN) -m pytest -n 2

lab: env ## play with copies of the chapters in JupyterLab (in lab/, which git ignores)
	@mkdir -p lab && for f in notebooks/*.ipynb; do [ -e lab/$${f##*/} ] || cp $$f lab/; done
	@$(RUN) -m jupyterlab --notebook-dir=lab

edit: env ## work on the real chapters in JupyterLab; text and notebook are saved together
	@$(RUN) tools/notebooks.py sync
	@$(RUN) -m jupyterlab

notebooks: env ## run the chapters whose code changed (ALL=1: all), and write text and notebook
	@$(RUN) tools/notebooks.py execute $(if $(ALL),--all)

check: env ## say what is wrong with chapters and pages, and with the code's style
	@$(RUN) tools/notebooks.py check
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

mutants: env ## break the code line by line, and see a test fail each time
	@$(RUN) tools/mutants.py

seeds: env ## run a chapter's checks with five seeds, and print each margin: make seeds CHAPTER=04
	@$(RUN) tools/seeds.py $(CHAPTER)

ledger: env ## count what chapters hold, time those that changed, and write book/ledger.md (ALL=1: time all, 20 minutes)
	@$(RUN) tools/ledger.py $(if $(ALL),--all)

bench: env ## measure the library beside others (20 minutes), and write book/benchmarks.md
	@OMP_NUM_THREADS=1 $(RUN) tools/bench.py

address: ## write the book's web address wherever it must stand: make address URL=...
	@$(RUN) tools/address.py $(URL)

lock: env ## write the versions of everything installed into constraints.txt
	@$(RUN) tools/lock.py

clean: ## remove what the other commands made: .venv, the built book, fetched assets
	@rm -rf .venv _build build book/assets/vendor lib/*.egg-info .pytest_cache .ruff_cache

env:
	$(HAVE)
	@$(PYTHON) tools/environment.py all
