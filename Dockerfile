# One image for control and edges: docker build -t tidegate .
# Commands and settings: docs/CLI.md, docs/CONFIGURATION.md; how it is put together: docker-compose.yml.

FROM rust:1.95-bookworm AS build
RUN rustup target add wasm32-unknown-unknown
WORKDIR /tidegate
COPY . .
RUN cargo xtask wasm
# etcd's client is built with protoc.
RUN apt-get update && apt-get install --yes --no-install-recommends protobuf-compiler \
    && rm -rf /var/lib/apt/lists/*
RUN cargo build --release --locked --package cli --bin tidegate --features etcd

FROM debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home tidegate \
    && mkdir --mode 700 /var/lib/tidegate /secrets \
    && chown tidegate:tidegate /var/lib/tidegate /secrets
COPY --from=build /tidegate/target/release/tidegate /usr/local/bin/tidegate
USER 10001:10001
WORKDIR /var/lib/tidegate
# Containers are reached by their own addresses, and log for machines.
ENV TIDEGATE_LOG_FORMAT=json
VOLUME ["/var/lib/tidegate"]
ENTRYPOINT ["tidegate"]
CMD ["--help"]
