"""A mail server for the tutorial: it prints what it takes, and knows everybody but those who are called nobody.

PYTHONPATH=docs/examples python -m aiosmtpd -n -l 127.0.0.1:8025 -c mail_server.Postman
"""

from __future__ import annotations

from aiosmtpd.handlers import Debugging
from aiosmtpd.smtp import SMTP, Envelope, Session


class Postman(Debugging):
    async def handle_RCPT(  # noqa: N802 - aiosmtpd calls it so
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"
