"""Sends the HL7 v2 messages of a file over TLS by PyPI hl7 (hl7.mllp), and prints MSA-1 and MSA-2 of each answer.

Arguments: host port file ca.pem. Run by the command `corpus clients`.
"""

import asyncio
import re
import ssl
import sys

import hl7
from hl7.mllp import open_hl7_connection


async def main(host, port, file, ca):
    with open(file, encoding="utf-8", newline="") as stream:
        texts = [text for text in re.split(r"(?=MSH\|)", stream.read()) if text.strip()]
    context = ssl.create_default_context(cafile=ca)
    reader, writer = await open_hl7_connection(host, int(port), ssl=context, server_hostname="localhost", encoding="utf-8")
    for text in texts:
        writer.writemessage(hl7.parse(text))
        await writer.drain()
        answer = await asyncio.wait_for(reader.readmessage(), 30)
        msa = answer.segment("MSA")
        print(msa(1), msa(2))
    writer.close()


asyncio.run(main(*sys.argv[1:]))
