# docker build -t alignkit .                                                            for CPUs
# docker build -t alignkit --build-arg TORCH_INDEX=https://pypi.org/simple .            with CUDA
# docker run --rm -v "$PWD:/mnt/alignkit" alignkit recipe rlhf.toml                     (CUDA: --gpus all)
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /src
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt --index-url "$TORCH_INDEX" torch \
 && pip install --no-cache-dir --constraint constraints.txt \
    . ./plugins/alignkit-distill ./plugins/alignkit-dpo ./plugins/alignkit-online ./plugins/alignkit-rlaif ./plugins/alignkit-trl

# Results and what is fetched from the hub lie in the folder that is mounted.
ENV HF_HOME=/mnt/alignkit/.huggingface OMP_WAIT_POLICY=passive
WORKDIR /mnt/alignkit
ENTRYPOINT ["alignkit"]
CMD ["--help"]
