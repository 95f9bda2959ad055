# docker build -t graft . && docker run --gpus all -v $PWD/data:/graft/data -v $PWD/runs:/graft/runs graft fit ...
# For a smaller image without CUDA pass pip's options for PyTorch's CPU index: --build-arg TORCH_OPTIONS="--index-url URL"
FROM python:3.12-slim
ARG TORCH_OPTIONS=
WORKDIR /graft
COPY pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir torch torchvision ${TORCH_OPTIONS} && pip install --no-cache-dir ".[grid]"
COPY . .
ENTRYPOINT ["python", "train.py"]
