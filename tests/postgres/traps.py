"""A database in which somebody else has set traps: objects with the names that statements use.

They lie in `public`, where whoever may create objects there can put them. A trap that is sprung
counts, and raises an error. Functions, operators and aggregates are there for all combinations of
the types that the store knows, so that one of them fits at least as well as PostgreSQL's own.
"""

from __future__ import annotations

from itertools import product

__all__ = ["HOSTILE_PATH", "SPRUNG", "script"]

# Finds the traps before anything of PostgreSQL's.
HOSTILE_PATH = "public, pg_catalog"
SPRUNG = "SELECT is_called FROM public.sprung"

TYPES = (
    "text", "boolean", "smallint", "integer", "bigint", "double precision", "numeric", "bytea",
    "timestamptz", "interval", "oid", "regclass", "name",
)  # fmt: skip
ARRAYS = ("text[]", "smallint[]", "integer[]", "bigint[]", "double precision[]", "timestamptz[]",
          "bytea[]", "oid[]")  # fmt: skip
OPERATORS = ("=", "<>", "<", "<=", ">", ">=")
MAKING = ("+", "-", "*", "/", "||")
# Of one argument, and what each returns.
ONE = {
    "cardinality": "integer",
    "abs": "integer",
    "unnest": "SETOF text",
    "count": "bigint",
    "array_agg": "text[]",
    "min": "timestamptz",
    "max": "timestamptz",
    "bool_or": "boolean",
    "nextval": "bigint",
    "quote_ident": "text",
    "to_regclass": "regclass",
    "to_regnamespace": "regnamespace",
    "hashtextextended": "bigint",
    "pg_advisory_xact_lock": "void",
    "pg_terminate_backend": "boolean",
    "format_type": "text",
    "current_setting": "text",
}
NONE = {
    "statement_timestamp": "timestamptz",
    "now": "timestamptz",
    "pg_backend_pid": "integer",
    "pg_current_snapshot": "text",
    "current_database": "name",
}
MORE = {
    "make_interval(secs double precision)": "interval",
    "make_interval(integer)": "interval",
    "string_to_array(text, text)": "text[]",
    "array_fill(text, integer[])": "text[]",
    "generate_series(integer, integer)": "SETOF integer",
    "format(text, integer)": "text",
    "format(text, text)": "text",
    "extract(text, interval)": "numeric",
    "pg_notify(text, text)": "void",
    "decode(text, text)": "bytea",
    "hashtextextended(text, integer)": "bigint",
    "set_config(text, text, boolean)": "text",
    "unnest(text[], bytea[])": "SETOF text",
}
RELATIONS = (
    "tasks", "migrations", "pg_class", "pg_proc", "pg_attribute", "pg_depend", "pg_type",
    "pg_namespace", "pg_range", "pg_stat_activity",
)  # fmt: skip
DOMAINS = ("text", "bytea", "timestamptz", "int2", "int4", "int8", "float8", "regclass", "regtype")


def _function(head: str, returned: str) -> str:
    return (
        f"CREATE FUNCTION public.{head} RETURNS {returned} LANGUAGE plpgsql "
        "SET search_path = pg_catalog AS $$ BEGIN PERFORM nextval('public.sprung'); "
        f"RAISE EXCEPTION 'a trap was sprung: {head}'; END $$"
    )


def script() -> str:
    """What a role runs that may create objects in `public`."""
    statements = ["CREATE SEQUENCE public.sprung", "GRANT ALL ON public.sprung TO PUBLIC"]
    every = (*TYPES, *ARRAYS)
    for left, right in product(every, every):
        if left in TYPES and right in TYPES:
            statements.append(_function(f"judge({left}, {right})", "boolean"))
            procedure = "FUNCTION = public.judge"
            statements.extend(
                f"CREATE OPERATOR public.{name} (LEFTARG = {left}, RIGHTARG = {right}, {procedure})"
                for name in OPERATORS
            )
        statements.append(_function(f"make({left}, {right})", left))
        statements.extend(
            f"CREATE OPERATOR public.{name} "
            f"(LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.make)"
            for name in (MAKING if left in TYPES and right in TYPES else MAKING[-1:])
        )
    statements.extend(
        _function(f"{name}({kind})", returned) for name, returned in ONE.items() for kind in every
    )
    statements.extend(_function(f"{name}()", returned) for name, returned in NONE.items())
    statements.extend(_function(head, returned) for head, returned in MORE.items())
    statements.append(_function("trap(integer)", "integer"))
    statements.extend(
        f"CREATE VIEW public.{name} AS SELECT public.trap(1) AS trap; "
        f"GRANT ALL ON public.{name} TO PUBLIC"
        for name in RELATIONS
    )
    statements.extend(
        f"CREATE DOMAIN public.{name} AS pg_catalog.{name} CHECK (public.trap(1) IS NULL)"
        for name in DOMAINS
    )
    return ";\n".join(statements)
