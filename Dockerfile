# JupyterLab with the book, on a CPU:
#   docker build -t corrmatch .
#   docker run --rm -p 8888:8888 -v "$PWD/runs:/book/runs" corrmatch     (then open the address that it prints)
# The default build of torch brings CUDA (several GB): docker run --gpus all ...
# A smaller image for a CPU: docker build --build-arg TORCH_INDEX=URL, with the address of an index of small CPU wheels.
FROM python:3.12-slim
ARG TORCH_INDEX=
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends git g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home reader
WORKDIR /book
COPY --chown=reader . .
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} --editable '.[dev]' && chown reader /book
USER reader
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--notebook-dir=nbs"]
