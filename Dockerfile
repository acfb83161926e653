# JupyterLab with the book, on a CPU:
#   docker build -t corrmatch .
#   docker run --rm -p 8888:8888 -v "$PWD/runs:/book/runs" corrmatch     (then open the address that it prints)
# For a GPU give the index of CUDA wheels: docker build --build-arg TORCH_INDEX= -t corrmatch .   and   docker run --gpus all ...
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends git g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home reader
WORKDIR /book
COPY --chown=reader . .
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} --editable '.[dev]' && chown reader /book
USER reader
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--notebook-dir=nbs"]
