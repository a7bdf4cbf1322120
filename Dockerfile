# An image with the command `crossearth`. For CPUs, or for NVIDIA GPUs with a driver for CUDA 13 (or 12):
#   docker build --tag crossearth .
#   docker build --tag crossearth:cuda --build-arg ACCELERATOR=cuda13 .
#   docker run --rm --gpus=all --volume="$PWD:/work" crossearth:cuda run --config=blue_marble --workdir=runs/blue_marble
FROM python:3.12-slim

# cpu, cuda12 or cuda13. JAX's packages contain the CUDA libraries, so one base image serves all.
ARG ACCELERATOR=cpu

COPY . /source
RUN extras=geo; if [ "$ACCELERATOR" != cpu ]; then extras="geo,$ACCELERATOR"; fi \
    && pip install --no-cache-dir -c /source/constraints.txt "/source[$extras]" \
    && rm -r /source

WORKDIR /work
ENTRYPOINT ["crossearth"]
CMD ["--help"]
