# make demo      environment, clip, training, evaluation, edits
# make test      environment, ruff, mypy, all tests
# make quick     the same without slow tests: for the inner loop
# make pictures  the moving picture and the drawing of the README, from the latest demo run

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
LATEST = $$(ls -td results/demo_*/ | head -1)
PARALLEL = -n auto --dist loadscope
ON_RUN = --trained_model_folder=$(LATEST) --video_name=demo --data_folder=data

.PHONY: demo test quick check pictures clean

$(VENV)/installed: requirements.txt requirements-test.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

demo: $(VENV)/installed
	@echo "--- 1 of 5: drawing the clip and the edits"
	$(RUN) -m scenes demo --data_folder data --paint data/demo_paint
	@echo "--- 2 of 5: masks (the drawn clip has rough ones already) and flow"
	$(RUN) preprocess_mask_rcnn.py --vid-path data/demo
	$(RUN) preprocess_optical_flow.py --vid-path data/demo --method dis
	@echo "--- 3 of 5: training"
	$(RUN) train.py config/demo.json
	@echo "--- 4 of 5: evaluating"
	$(RUN) only_evaluate.py $(ON_RUN) --output_folder=$(LATEST)evaluation
	@echo "--- 5 of 5: painting a star on one frame, stripes on the background atlas"
	$(RUN) only_edit.py $(ON_RUN) --output_folder=$(LATEST)star \
		--use_edit_frame --edit_frame_index=5 --edit_frame_path=data/demo_paint/frame_edit.png --edit_frame_foreground
	$(RUN) only_edit.py $(ON_RUN) --output_folder=$(LATEST)stripes --edit_background_path=data/demo_paint/background_edit.png
	@echo
	@echo "Look at these, all in $(LATEST) (the README's RUN)"
	@echo "  preview.png            the clip, its reconstruction, opacity and both atlases"
	@echo "  evaluation/index.html  everything side by side, in a browser"
	@echo "  star/edited_demo.mp4   a star painted on frame 5 of the cat follows it; edited.png beside it shows some frames"
	@echo "  stripes/edited_demo.mp4  stripes painted on the background atlas"

check: $(VENV)/installed
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

test: check
	$(RUN) -m pytest -q $(PARALLEL)

quick: check
	$(RUN) -m pytest -q $(PARALLEL) -m "not slow"

pictures: $(VENV)/installed
	$(RUN) docs/make_pictures.py --run $(LATEST)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
