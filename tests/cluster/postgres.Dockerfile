# PostgreSQL from Debian's packages, with the variables of the official image, for machines that reach no registry.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql >/dev/null && rm -rf /var/lib/apt/lists/*
ENV PGDATA=/var/lib/postgresql/data PATH=/usr/lib/postgresql/15/bin:$PATH
RUN mkdir -p "$PGDATA" && chown postgres:postgres "$PGDATA"
USER postgres
COPY postgres.sh /start
CMD ["sh", "/start"]
