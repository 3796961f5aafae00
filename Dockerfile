# The image that launch.kubernetes names:
#
#     docker build --build-arg ACCELERATOR=cuda -t REGISTRY/flaxnets .
#     docker run --rm REGISTRY/flaxnets launch.train --helpshort
#
# ACCELERATOR is cuda, tpu or nothing, an extra of pyproject.toml.
FROM python:3.13-slim

# Python as process 1 would ignore SIGTERM as long as it has no handler; tini hands signals on.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home flaxnets

WORKDIR /flaxnets

# What is installed changes less often than the code: an empty package stands for it.
COPY pyproject.toml constraints.txt README.md LICENSE ./
ARG ACCELERATOR=
RUN mkdir flaxnets && touch flaxnets/__init__.py \
    && pip install --no-cache-dir -c constraints.txt \
        -e ".[pretrained,captions${ACCELERATOR:+,$ACCELERATOR}]"

COPY flaxnets flaxnets
COPY data data
COPY experiments experiments
COPY launch launch

ENV PYTHONUNBUFFERED=1
# By number, so that Kubernetes can tell that it is not root.
USER 1000
ENTRYPOINT ["tini", "--", "python", "-m"]
