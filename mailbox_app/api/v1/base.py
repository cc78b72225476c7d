"""The view every route is made of. It names all it needs: a team's own REST_FRAMEWORK settings change nothing here."""

import json
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from django.db import transaction
from django.http import HttpRequest
from django.urls import reverse
from drf_spectacular.openapi import AutoSchema
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import UnsupportedMediaType
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import JSONParser
from rest_framework.permissions import BasePermission
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.schemas.inspectors import ViewInspector
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView

from mailbox_app.api.v1 import errors
from mailbox_app.api.v1.errors import Malformed
from mailbox_app.api.v1.permissions import AUTHENTICATION, HasScope, scope_of
from mailbox_app.api.v1.throttling import RequestThrottle
from mailbox_app.conf import conf
from mailbox_app.errors import InvalidInput

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_JSON_TYPE = re.compile(r"application/(json|[\w.+-]+\+json)", re.IGNORECASE)


class Renderer(JSONRenderer):
    """JSON in UTF-8, whatever the project's settings say of it."""

    ensure_ascii = False
    compact = True
    strict = True


class Negotiation(DefaultContentNegotiation):
    """By the Accept header alone: `format` is an unknown parameter like any other."""

    def select_renderer(self, request: Any, renderers: Any, format_suffix: str | None = None) -> Any:
        """Let problem details be asked for by name: they are JSON."""
        wanted = [part.split(";")[0].strip().lower() for part in request.headers.get("Accept", "*/*").split(",")]
        if errors.MEDIA_TYPE in wanted:
            return renderers[0], renderers[0].media_type
        return super().select_renderer(request, renderers, format_suffix)

    def filter_renderers(self, renderers: Any, format: str) -> Any:  # noqa: A002 - the framework's name
        """Keep all."""
        return renderers


class PublicView(APIView):
    """A route that anybody may read; every refusal is problem details."""

    schema: ViewInspector | None = AutoSchema()
    authentication_classes: Sequence[type[BaseAuthentication]] = ()
    permission_classes: Sequence[type[BasePermission]] = ()
    renderer_classes: Sequence[type[BaseRenderer]] = (Renderer,)
    parser_classes = (JSONParser,)
    throttle_classes: Sequence[type[BaseThrottle]] = ()
    content_negotiation_class = Negotiation
    versioning_class = None
    http_method_names: tuple[str, ...] = ("get", "head", "post", "put", "patch", "delete")

    @property
    def default_response_headers(self) -> dict[str, str]:
        # What one caller was told is for no cache.
        return {**super().default_response_headers, "Cache-Control": "no-store"}

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Take the view out of ATOMIC_REQUESTS: a refusal is an answer, and each verb is a transaction of its own."""
        return transaction.non_atomic_requests(super().as_view(**initkwargs))

    def get_exception_handler(self) -> Callable[[Exception, dict[str, Any]], Any]:
        return errors.answer

    def handle_exception(self, exc: Exception) -> Response:
        """Answer in JSON, whatever the route's own representations are."""
        self.request.accepted_renderer, self.request.accepted_media_type = Renderer(), Renderer.media_type
        return super().handle_exception(exc)

    def link(self, name: str, **arguments: Any) -> str:
        """The path of a route of this API, under the prefix and namespace the request came in by."""
        match = self.request.resolver_match
        namespace = match.namespace if match else ""
        urlconf = getattr(self.request, "urlconf", None)
        return reverse(f"{namespace}:{name}" if namespace else name, urlconf=urlconf, kwargs=arguments)


class MailboxView(PublicView):
    """A route of the API proper: authenticated, and within one scope."""

    authentication_classes = AUTHENTICATION
    permission_classes: Sequence[type[BasePermission]] = (HasScope,)
    throttle_classes: Sequence[type[BaseThrottle]] = (RequestThrottle,)

    scope: str

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Authenticate, and settle the scope before anything of the request is read."""
        super().initial(request, *args, **kwargs)
        self.scope = scope_of(request)


class NotFoundView(PublicView):
    """Any address under the prefix that is no route."""

    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse every method alike."""
        super().initial(request, *args, **kwargs)
        raise Malformed("not_found", "There is nothing at this address.")


def path_id(name: str, value: str) -> uuid.UUID:
    """An id from the address."""
    if not _UUID.fullmatch(value):
        raise Malformed("malformed_id", f"{name} must be a UUID, not {value!r:.60}", field=name)
    return uuid.UUID(value)


def body_of(request: Request, fields: set[str], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The request's JSON object. `null` is as good as absent; a field that is not known is refused.

    Read here and not by the framework, which takes a body of unknown length for none, applies no limit to it, and lets
    NaN, repeated names and other encodings pass.
    """
    return fields_of(_parsed(request), fields, required)


def optional_body_of(request: Request, fields: set[str]) -> dict[str, Any]:
    """The same, of a request that may have no body at all."""
    return body_of(request, fields) if _read(request._request) else {}


def fields_of(given: Any, fields: set[str], required: tuple[str, ...] = (), *, at: str = "") -> dict[str, Any]:
    """The known fields of an object of the body; `at` is where in it the object stands."""
    whole, before = (at, f"{at}.") if at else ("body", "")
    if not isinstance(given, dict):
        raise InvalidInput(
            whole, "not_an_object", f"{at or 'the body'} must be {'an' if at else 'a JSON'} object, not {_kind(given)}"
        )
    unknown = sorted(set(given) - fields)
    if unknown:
        named = [(f"{before}{name}", f"{at or 'the body'} has no field {name!r:.100}") for name in unknown[:20]]
        refusal = InvalidInput(named[0][0], "unknown_field", named[0][1])
        refusal.errors = [{"field": name, "code": "unknown_field", "message": message} for name, message in named]
        raise refusal
    for name in required:
        if name not in given:
            raise InvalidInput(f"{before}{name}", "required", f"{before}{name} is required")
    return {name: value for name, value in given.items() if value is not None or name in required}


def _read(plain: HttpRequest) -> bytes:
    """The body, at most `max_body_bytes` of it: Django's own limit is for forms, and not for bodies in chunks."""
    if not hasattr(plain, "_body"):
        announced = str(plain.META.get("CONTENT_LENGTH") or "0")
        if announced.isdecimal() and int(announced) > conf.max_body_bytes:
            raise _too_large()
        # Kept where `HttpRequest.body` looks, for error reporters.
        plain._body = plain.read(conf.max_body_bytes + 1)
    body: bytes = plain.body
    if len(body) > conf.max_body_bytes:
        raise _too_large()
    return body


def _too_large() -> Malformed:
    most = conf.max_body_bytes
    return Malformed("body_too_large", f"the body must have at most {most} bytes", max_bytes=most)


def _parsed(request: Request) -> Any:
    plain: HttpRequest = request._request
    body = _read(plain)
    if not plain.content_type and not body:
        raise Malformed("malformed_json", "the body is empty; send a JSON object")
    if not _JSON_TYPE.fullmatch(plain.content_type or ""):
        raise UnsupportedMediaType(plain.content_type or "", "Send the body as application/json.")
    if (plain.content_params or {}).get("charset", "utf-8").lower() not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType(plain.content_type or "", "Send JSON in UTF-8.")
    try:
        return json.loads(body.decode(), object_pairs_hook=_without_repetition, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Malformed("malformed_json", f"the body is not UTF-8: byte {error.start} cannot be read") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise Malformed("malformed_json", f"the body is not JSON: {error.msg} at {where}") from error
    except RecursionError as error:
        raise Malformed("malformed_json", "the body is nested too deeply") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise Malformed("malformed_json", "the body holds a number that is too long") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Malformed("malformed_json", f"an object of the body holds the name {repeated!r:.100} twice")
    return read


def _refuse_constant(name: str) -> Any:
    raise Malformed("malformed_json", f"{name} is not JSON")


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
