/** What several tests of sessions do. */

import { type CommandResult, cdb16, type IscsiInitiator } from './iscsi-initiator.ts';
import type { Pdu } from './iscsi-wire.ts';

export const BLOCK = 512;

/** Bytes that differ from place to place. */
export function pattern(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i++) bytes[i] = i * 31 + (i >> 8) * 7 + seed;
  return bytes;
}

export function opcodes(pdus: readonly Pdu[]): number[] {
  return pdus.map((pdu) => pdu.opcode);
}

/** Sends a WRITE(16) of one block whose data the test sends later. */
export function startWrite(
  initiator: IscsiInitiator,
  tag: number,
  { flags = 0xa1, blocks = 1 } = {},
): Promise<CommandResult> {
  const result = initiator.expect(tag);
  const cdb = cdb16(0x8a, 0, blocks);
  initiator.send({ opcode: 1, flags, itt: tag, word20: blocks * BLOCK, cmdSN: initiator.cmdSN++, cdb });
  return result;
}

/** The R2T that came last. */
export function lastR2T(initiator: IscsiInitiator): { transferTag: number; offset: number; length: number } {
  const { bytes } = initiator.unsolicited.findLast((pdu) => pdu.opcode === 0x31) as Pdu;
  return { transferTag: bytes.readUInt32BE(20), offset: bytes.readUInt32BE(40), length: bytes.readUInt32BE(44) };
}

/** Login keys: data comes when it is asked for. */
export const R2T_ONLY = { InitialR2T: 'Yes', ImmediateData: 'No' };
