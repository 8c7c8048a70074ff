import { read16 } from './bytes.ts';
import type { Nexus } from './task.ts';

/** A TransportID (SPC-4 section 7.6.4): how parameter lists name an initiator port. */
export interface TransportId {
  /**
   * What identifies the port: for iSCSI its name in lower case (`iqn…,i,0x…`, or `iqn…` for every port of a device), else the hexadecimal
   * digits of the TransportID.
   */
  readonly port: string;
  readonly bytes: Uint8Array;
}

const ISCSI = 5;
const FIXED_LENGTH = 24;
/** iSCSI names have at most 223 bytes; `,i,0x` and an ISID follow. */
const MAX_ISCSI_LENGTH = 4 + 244;

/** Decodes the TransportID at `at`; undefined when it is cut or malformed. */
export function parseTransportId(list: Uint8Array, at: number): TransportId | undefined {
  if (at + FIXED_LENGTH > list.length) return undefined;
  const first = list[at] as number;
  if ((first & 0x0f) !== ISCSI) {
    const bytes = new Uint8Array(list.subarray(at, at + FIXED_LENGTH));
    return { port: Buffer.from(bytes).toString('hex'), bytes };
  }
  const format = first >> 6;
  const length = 4 + read16(list, at + 2);
  if (format > 1 || length < FIXED_LENGTH || length > MAX_ISCSI_LENGTH || length % 4 !== 0) return undefined;
  if (at + length > list.length) return undefined;
  const bytes = new Uint8Array(list.subarray(at, at + length));
  const end = bytes.indexOf(0, 4);
  if (end < 0) return undefined;
  const port = Buffer.from(bytes.subarray(4, end)).toString('utf8').toLowerCase();
  if (port.length === 0 || port.includes(',i,0x') !== (format === 1)) return undefined;
  return { port, bytes };
}

/** Whether a nexus comes from the port that a TransportID names. */
export function isPort(port: string, nexus: Nexus): boolean {
  const name = nexus.initiatorPort.toLowerCase();
  if (name === port || (name.startsWith(port) && name.startsWith(',i,0x', port.length))) return true;
  return ((nexus.transportId[0] ?? 0) & 0x0f) !== ISCSI && Buffer.from(nexus.transportId).toString('hex') === port;
}
