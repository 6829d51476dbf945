# syntax=docker/dockerfile:1
# The service, the reaper and the migration: one binary, whose subcommand is the container's argument. For linux/amd64 and
# linux/arm64, each built on a machine of its kind.
#
#   docker build -t operator-service .
#   docker run -p 8050:8050 -e POSTGRES_HOST=… -e POSTGRES_DB=… -e POSTGRES_USER=… -e POSTGRES_PASSWORD=… operator-service

FROM rust:1.95-slim-bookworm AS build
ARG TARGETARCH
WORKDIR /source
COPY . .
ENV SQLX_OFFLINE=true
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target,id=target-$TARGETARCH \
    cargo build --release --locked --bin operator-service \
    && cp target/release/operator-service /operator-service

# glibc of the same Debian as above, libgcc and root certificates; no shell, not root (65532).
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="operator-service" \
      org.opencontainers.image.description="Ocean Protocol Compute-to-Data: takes compute jobs and registers them in Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /operator-service /operator-service
ENV HOST=0.0.0.0
EXPOSE 8050
ENTRYPOINT ["/operator-service"]
CMD ["serve"]
