TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
.DEFAULT_GOAL := help
.PHONY: help demo run test test-faults fuzz bench lint audit fmt sqlx crd docs validate build configure deploy status destroy logs bump clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## Start everything, run an example job, show its result, stop everything
	@scripts/install-tools run
	cargo build --workspace --bin devstack --bin operator-service
	@$(TARGET_DIR)/debug/devstack demo

run: ## Start everything and keep it running until Ctrl-C
	@scripts/install-tools run
	cargo build --workspace --bin devstack --bin operator-service
	@$(TARGET_DIR)/debug/devstack run

test: ## Install what the tests need and run them all; ARGS are handed to cargo test
	@scripts/install-tools test
	@scripts/test $(ARGS)

test-faults: ## Test more rounds of requests and faults than `make test` does: ROUNDS=500 [SEED=]
	@scripts/install-tools test
	@FAULT_ROUNDS=$(or $(ROUNDS),500) FAULT_SEED=$(SEED) scripts/test --test faults -- --nocapture

fuzz: ## Look for inputs that a fuzz target fails on, in libFuzzer: [SECONDS=60, for each target] [TARGET=]
	@scripts/install-tools fuzz
	@scripts/fuzz $(or $(SECONDS),60) $(TARGET)

bench: ## Measure the service against bare handlers: [ROUNDS= SECONDS= JOBS= ONLY=figure BESIDE=what else runs]
	cargo build --release --bins
	cargo build --release --package bench
	@$(TARGET_DIR)/release/bench

lint: ## Check formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

audit: ## Check the dependencies: licences, advisories, banned and unused ones
	@scripts/check-dependencies

fmt: ## Format the code
	cargo fmt --all

sqlx: ## Write .sqlx/, after a change to a query or a migration
	@scripts/install-tools test
	cargo build --package devstack
	$(TARGET_DIR)/debug/devstack with-postgres -- scripts/sqlx-prepare

crd: ## Write infra/kubernetes/crd.yaml, after a change to the WorkFlow type
	cargo build --workspace --bin operator-service
	@$(TARGET_DIR)/debug/operator-service crd > infra/kubernetes/crd.yaml

docs: ## Write the tables of docs/configuration.md and docs/metrics.md, after a change to a variable or a metric
	cargo build --workspace --bin operator-service
	@sed -i '/^| CloudWatch/,$$d' docs/metrics.md
	@$(TARGET_DIR)/debug/operator-service metrics >> docs/metrics.md
	@sed -i '/^## /,$$d' docs/configuration.md
	@$(TARGET_DIR)/debug/operator-service variables >> docs/configuration.md

validate: ## Check template.yaml and infra/ without an AWS account
	@scripts/validate-infra

build: ## Build the functions for AWS Lambda
	@scripts/aws-tools scripts/build-functions

configure: ## Write environments/ENV.toml from what AWS knows: ENV=name [CLUSTER= REGION= DATABASE=new]
	@scripts/aws-tools python scripts/deployment.py configure "$(ENV)" --cluster="$(CLUSTER)" --region="$(REGION)" --database="$(DATABASE)"

deploy: ## Deploy the built functions, and the stacks that they need: ENV=name
	@scripts/aws-tools python scripts/deployment.py deploy "$(ENV)"

status: ## Show stacks, versions, alarms, the last sweep and the schema: ENV=name
	@scripts/aws-tools python scripts/deployment.py status "$(ENV)"

destroy: ## Delete an installation; the database stays, unless DATA=delete: ENV=name CONFIRM=stack
	@scripts/aws-tools python scripts/deployment.py destroy "$(ENV)" --confirm="$(CONFIRM)" --data="$(DATA)"

logs: ## Follow the logs of the deployed functions: STACK=name
	@scripts/aws-tools sam logs --stack-name "$(STACK)" --tail

bump: ## Raise the version: make bump PART=major|minor|patch
	@scripts/bump $(PART)

clean: ## Delete build output and the data of local runs
	cargo clean
	rm -rf .local
