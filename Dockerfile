# One file for every kind of machine: docker build --build-arg EXTRA=cuda|cuda13|tpu . (without it: CPU).
FROM python:3.12-slim
ARG EXTRA=""
WORKDIR /em_jax
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".${EXTRA:+[$EXTRA]}"
WORKDIR /work
ENTRYPOINT ["em-jax"]
CMD ["--help"]
