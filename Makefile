PYTHON ?= python3
VENV := .venv
DEMO := --arch=vgg --norm_type=BatchNorm --dataset=Synthetic --train_samples=1500 --test_samples=500 --batch_size=64 --epochs=5

.PHONY: demo test bench lint clean

demo: $(VENV)/installed
	$(VENV)/bin/python main.py $(DEMO) --results_dir=results/demo
	$(VENV)/bin/python run_class_similarity.py --results_dir=results/demo
	$(VENV)/bin/python run_hessian.py --results_dir=results/demo --samples=100 --lanczos_steps=10 --trace_probes=4
	@echo 'The pictures are in results/demo/vgg_*/. Next: run ". $(VENV)/bin/activate" and "python main.py --help"'

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal

bench: $(VENV)/installed-dev
	$(VENV)/bin/python -m pip install --quiet pyhessian
	$(VENV)/bin/python benchmarks/bench.py

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy .
	$(VENV)/bin/lint-imports

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV)
