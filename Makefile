# Needs Python 3.11 with pip and venv, and make; everything else is installed into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test documents department lint clean

demo: $(VENV)/installed
	$(BIN)/hqinet demo

# Three processes for two cores, since many tests wait for servers; a file of tests stays on one of
# them, which makes its home and cohort once.
test: $(VENV)/installed
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Every block of commands in README and docs, run as a reader would: five to ten minutes.
documents: $(VENV)/installed
	$(BIN)/python -m pytest -m documents

# The collections of HQINET_REAL_DATA, dropped into the inboxes of a home whose services run: a
# champion, a second verdict and a restored series though nobody types; a quarter of an hour.
department: $(VENV)/installed
	@test -d "$(HQINET_REAL_DATA)" || { echo "set HQINET_REAL_DATA to a folder of real CT"; exit 1; }
	$(BIN)/python -m pytest -m department

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# PyTorch first and alone: a range asked for by another package could pull a CUDA build of gigabytes.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[idc,server,test]'
	touch $@

clean:
	rm -rf $(VENV)
