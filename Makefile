# make lab     from a bare machine to a running lab: packages, venv, image, containers, site.yml, verify
# make test    lint, unit tests on Python 2.7, 3.9 and the controller's, integration, molecule
# make interop  the path with today's nova and neutron from the package index, and halves of it with neutron's
# make folsom-series NOVA_SOURCE=... QUANTUM_SOURCE=... [FOLSOM_PYTHON=...]
#              the patch series on clones of the real repositories: made, tried, applied, taken back
# make folsom NOVA_SOURCE=... QUANTUM_SOURCE=... [FOLSOM_BASES='2012.2.4 2012.2']
#              Folsom's own services in containers, patched, served and rolled back by this toolkit
# make faults  in the lab: what can break is broken for real, and each tool has to name it
# make bench [BENCH=--quick] [NOVA_SOURCE=... QUANTUM_SOURCE=...]
#              figures beside nginx, neutron's haproxy and agent, and with sources upstream's on Folsom
# make lint    ansible-lint, yamllint, ruff, syntax
# make readmes the roles' READMEs anew, after a change of their meta/argument_specs.yml
# make clean   removes the lab (containers, networks, image) and all that was built
#
# Packages come from wherever apt and pip of this machine get theirs.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
VENV := .venv
BIN := $(VENV)/bin
LAB := build/lab
PACKAGES := podman runc netavark aardvark-dns mmdebstrap iproute2 iptables openssh-client
export PATH := $(CURDIR)/$(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
PODMAN := $(SUDO) env CONTAINERS_CONF=$(CURDIR)/$(LAB)/containers.conf podman

# One run at a time. A run that lost its terminal may still be at work, and its lock says so: the lock
# is held by the processes themselves and goes with the last of them.
define locked
	@mkdir -p build
	@flock --nonblock --conflict-exit-code 75 build/lock $(MAKE) --no-print-directory $(1) || { \
	  status=$$?; [ $$status = 75 ] || exit $$status; \
	  echo 'Another run of make is at work in this checkout; waiting for it to end.'; \
	  flock build/lock $(MAKE) --no-print-directory $(1); }
endef

.PHONY: help lab test lint readmes unit integration molecule interop faults folsom folsom-series bench clean
help:
	@sed -n '/^# make/,/^#$$/{/^#$$/!s/^# //p}' Makefile

lab test lint readmes unit integration molecule interop faults folsom folsom-series bench clean:
	$(call locked,run-$@)

.PHONY: run-lab run-test run-lint run-readmes run-unit run-integration run-molecule run-interop run-faults run-folsom run-folsom-series run-bench run-clean packages image
run-lab: packages $(VENV)/.complete
	@rm -f build/report/verify.txt
	ansible-playbook playbooks/lab.yml
	ansible-playbook site.yml
	@echo && cat build/report/verify.txt && echo "As a page: build/report/index.html"

# Packages are asked for once in a run of make, so all that any part needs.
run-test: PACKAGES += chromium
run-test: run-lint run-unit run-integration run-molecule

run-lint: $(VENV)/.complete
	ruff check .
	yamllint --strict .
	ansible-lint --offline --strict
	ansible-playbook --syntax-check site.yml playbooks/*.yml tests/folsom_cloud/*.yml

run-readmes: $(VENV)/.complete
	python tests/role_readmes.py

# Side by side: most of their time they wait. What all three need is made before.
run-unit: image build/tests-py2.7/.complete build/tests-py3.9/.complete
	@echo 'Unit tests on three Pythons side by side, which takes some four minutes'
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target unit-controller unit-2.7 unit-3.9

.PHONY: unit-controller unit-2.7 unit-3.9
unit-controller: $(VENV)/.complete
	python -m pytest tests/unit

# The nodes' own interpreters, as the lab's image has them.
unit-2.7 unit-3.9: unit-%: image build/tests-py%/.complete
	$(PODMAN) run --rm --label mdproxy.tests=$(CURDIR) --network none --volume $(CURDIR):/src:ro --workdir /src \
	  --env PYTHONPATH=/src/build/tests-py$*:/src --env PYTHONDONTWRITEBYTECODE=1 \
	  $$(cat $(LAB)/image) python$* -m pytest -p no:cacheprovider tests/unit

run-integration: PACKAGES += chromium
run-integration: packages $(VENV)/.complete
	$(SUDO) $(CURDIR)/$(BIN)/python -m pytest tests/integration

# Of a run that was cut short molecule would believe that the lab is there.
run-molecule: packages $(VENV)/.complete build/newest/.complete
	molecule reset --scenario-name default
	molecule test --all

# A controller with the newest ansible-core, which asks for a newer Python than Debian 12 has.
build/newest/.complete: molecule/newest/requirements.txt image | packages
	@echo 'Making a container with the newest ansible-core, which takes half a minute'
	rm -rf $(@D) && mkdir -p $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: --no-deps --no-compile --ignore-requires-python \
	  --python-version 3.13 --implementation cp --target $(@D)/site -r $<
	$(SUDO) mmdebstrap --quiet --variant=minbase --include=python3,openssh-client trixie $(@D)/root.tar
	echo localhost/mdproxy-newest:$$(sha256sum $< | head -c 12) >$(@D)/image
	$(PODMAN) import --change 'LABEL mdproxy.image=lab' $(@D)/root.tar $$(cat $(@D)/image)
	rm $(@D)/root.tar && touch $@

# Their own virtualenvs, as the two do not agree on the versions of what they need.
INTEROP := $(CURDIR)/build/interop
run-interop: PACKAGES += haproxy
run-interop: packages $(VENV)/.complete
	@$(MAKE) --no-print-directory --jobs=2 $(INTEROP)/nova/.complete $(INTEROP)/neutron/.complete
	$(SUDO) env NOVA_VENV=$(INTEROP)/nova NEUTRON_VENV=$(INTEROP)/neutron \
	  $(CURDIR)/$(BIN)/python -m pytest -v tests/interop

$(INTEROP)/%/.complete: tests/interop/%.txt | packages
	@echo 'Installing $* into $(@D)'
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

run-faults: run-lab
	python -m pytest -v -s tests/lab_faults

FOLSOM_BASES ?= 2012.2.4 2012.2
export NOVA_SOURCE QUANTUM_SOURCE FOLSOM_PYTHON FOLSOM_BASES
SOURCES := $(and $(NOVA_SOURCE),$(QUANTUM_SOURCE))
define no_sources
	@echo 'Skipped: give clones of the real repositories, with their whole history and tags:'
	@echo "  make $(1) NOVA_SOURCE=/src/nova QUANTUM_SOURCE=/src/neutron $(2)"
endef

FOLSOM_SITE := build/folsom-python/site.tgz
run-folsom: $(if $(SOURCES),packages $(VENV)/.complete $(FOLSOM_SITE))
ifeq ($(SOURCES),)
	$(call no_sources,folsom,[FOLSOM_BASES='2012.2.4 2012.2'])
else
	python -m pytest -v tests/folsom_cloud
endif

$(FOLSOM_SITE): tests/folsom_cloud/folsom_python.py tests/folsom_cloud/pins.txt | packages $(VENV)/.complete
	@echo 'Building what Folsom imports for the lab'\''s Python 2.7, which takes a minute'
	$(SUDO) $(CURDIR)/$(BIN)/python $^ $(@D)

run-folsom-series: $(if $(SOURCES),packages $(VENV)/.complete)
ifeq ($(SOURCES),)
	$(call no_sources,folsom-series,[FOLSOM_PYTHON=/path/to/python2.7])
else
	$(SUDO) env NOVA_SOURCE="$$NOVA_SOURCE" QUANTUM_SOURCE="$$QUANTUM_SOURCE" FOLSOM_PYTHON="$$FOLSOM_PYTHON" \
	  $(CURDIR)/$(BIN)/python -m pytest -v tests/folsom
endif

# Each on 2.7 and on the newest Python 3 of this machine, or on those that BENCH_PYTHONS names.
BENCH_PYTHONS ?= build/python2.7/usr/bin/python2.7 \
  $(shell for n in $$(seq 30 -1 9); do python3.$$n -c 'import ctypes, ssl' 2>/dev/null && command -v python3.$$n && break; done)
BENCH_RUN := build/bench/$(shell date +%Y%m%d-%H%M%S)
BENCH_FOLSOM := $(if $(SOURCES),build/folsom-site/.complete)
run-bench: PACKAGES += nginx haproxy wrk
run-bench: packages $(VENV)/.complete build/python2.7/.complete build/bench-py2/.complete build/bench-py3/.complete \
  build/bench-page/.complete $(INTEROP)/neutron/.complete $(BENCH_FOLSOM)
ifneq ($(SOURCES),)
	ansible-playbook playbooks/backport.yml -e folsom_base=$(firstword $(FOLSOM_BASES)) -e nova_source= -e quantum_source="$$QUANTUM_SOURCE"
	rm -rf build/bench-quantum && git clone --quiet --branch mdproxy/$(firstword $(FOLSOM_BASES)) \
	  build/folsom/git/$(firstword $(FOLSOM_BASES))/quantum.git build/bench-quantum
endif
	$(SUDO) $(CURDIR)/$(BIN)/python tests/bench/run.py --neutron $(INTEROP)/neutron \
	  $(foreach python,$(BENCH_PYTHONS),--python $(abspath $(python)):$(CURDIR)/build/bench-py$(if $(findstring python2,$(notdir $(python))),2,3)) \
	  $(if $(SOURCES),--folsom-python $(CURDIR)/build/python2.7/usr/bin/python2.7 --folsom-tree $(CURDIR)/build/bench-quantum \
	    --folsom-site $(CURDIR)/build/folsom-site/usr/local/lib/python2.7/dist-packages) \
	  --json $(BENCH_RUN).json $(BENCH)
	status=0; $(if $(findstring --measure,$(BENCH)),,$(SUDO) env PATH="$$PATH" $(CURDIR)/$(BIN)/python tests/bench/playbooks.py \
	  --json $(BENCH_RUN)-playbooks.json $(filter --quick,$(BENCH)) || status=$$?;) \
	build/bench-page/bin/python tests/bench/page.py $(BENCH_RUN)*.json; exit $$status

# A Python 2.7 that runs as it is, with the libraries that Debian 12 does not have any more.
build/python2.7/.complete: | packages
	@echo 'Unpacking a Python 2.7 into $(@D)'
	$(SUDO) rm -rf $(@D) && mkdir -p $(@D)/usr/lib/x86_64-linux-gnu
	$(SUDO) mmdebstrap --quiet --variant=extract --include=python2.7-minimal,libpython2.7-stdlib bullseye $(@D)/root
	cd $(@D)/root/usr && cp -r --parents bin/python2.7 lib/python2.7 ../../usr
	cp $(@D)/root/usr/lib/x86_64-linux-gnu/lib{ssl,crypto}.so.1.1 $(@D)/root/usr/lib/x86_64-linux-gnu/libffi.so.7 $(@D)/usr/lib/x86_64-linux-gnu
	$(SUDO) rm -rf $(@D)/root && touch $@

# What a release has beside mdproxy, but for what only Ansible's modules import.
build/bench-py%/.complete: roles/mdproxy/files/locks/py%.txt $(VENV)/.complete
	rm -rf $(@D) && mkdir -p $(@D)
	grep -v -e '^#' -e '^pyroute2' $< >$(@D)/requirements.txt
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --only-binary=:all: --no-deps \
	  --python-version $(if $(filter 2,$*),2.7,3.9) --implementation py --abi none --platform any --dest $(@D)/wheels -r $(@D)/requirements.txt
	for wheel in $(@D)/wheels/*.whl; do $(BIN)/python -m zipfile --extract $$wheel $(@D) || exit 1; done
	touch $@

build/bench-page/.complete: tests/bench/requirements.txt | packages
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

build/folsom-site/.complete: $(FOLSOM_SITE)
	rm -rf $(@D) && mkdir -p $(@D) && tar -xzf $< -C $(@D) && touch $@

# The venv is needed to find what the lab has made, also when its folder was lost.
run-clean:
	@if command -v podman >/dev/null; then \
	  $(MAKE) --no-print-directory $(VENV)/.complete && \
	  for name in lab molecule bench; do \
	    MDPROXY_LAB=$$name ansible-playbook playbooks/lab_destroy.yml || exit 1; done; \
	  MDPROXY_LAB=folsom ansible-playbook -i inventories/folsom playbooks/lab_destroy.yml || exit 1; \
	  $(PODMAN) ps --all --quiet --filter label=mdproxy.tests=$(CURDIR) | xargs -r $(PODMAN) rm --force; \
	  $(PODMAN) image prune --all --force --filter label=mdproxy.image=lab; fi
	$(SUDO) rm -rf $(VENV) $$(ls -d build/* 2>/dev/null | grep -v '^build/lock$$') .ansible \
	  .pytest_cache .ruff_cache .hypothesis .tox

packages:
	@missing=; for name in $(PACKAGES); do [ "$$(dpkg-query -W -f='$${db:Status-Status}' $$name 2>/dev/null)" = installed ] || \
	  missing="$$missing $$name"; done; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
	  echo "Installing packages:$$missing"; \
	  $(SUDO) dpkg --configure -a && $(SUDO) apt-get -qq update && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
	    $$missing >build/packages.log || { cat build/packages.log; exit 1; }; fi

$(VENV)/.complete: requirements.txt roles/mdproxy/files/locks/py3.txt | packages
	@echo 'Installing the controller'\''s Python packages into $(VENV)'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

image: packages $(VENV)/.complete
	@ansible-playbook playbooks/lab_image.yml

# pip of Python 3 fetches for another Python, but does not install for it: pure wheels are unpacked.
# scandir is a source package, of which the pure part is enough.
build/tests-py%/.complete: tests/requirements-py%.txt $(VENV)/.complete
	rm -rf $(@D) && mkdir -p $(@D)
	grep -v '^scandir' $< >$(@D)/requirements.txt
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --only-binary=:all: --no-deps \
	  --python-version $* --implementation py --abi none --platform any \
	  --dest $(@D)/wheels -r $(@D)/requirements.txt
	for wheel in $(@D)/wheels/*.whl; do $(BIN)/python -m zipfile --extract $$wheel $(@D) || exit 1; done
	if grep '^scandir' $< >$(@D)/source.txt; then \
	  $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-binary=:all: --no-deps \
	    --no-build-isolation --use-pep517 --dest $(@D)/wheels -r $(@D)/source.txt && \
	  tar -xzf $(@D)/wheels/scandir-*.tar.gz -C $(@D) --strip-components=1 --wildcards '*/scandir.py'; fi
	touch $@
