import { UsageError } from '../../formats/core/errors.ts';

export { formatAddress } from '../edge/address.ts';

/** Longest iSCSI name, bytes (RFC 7143 section 4.2.7.2). */
export const MAX_NAME_LENGTH = 223;

const IQN = /^iqn\.[0-9]{4}-(?:0[1-9]|1[0-2])\.[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[^\s\0]*)?$/;
const EUI = /^eui\.[0-9a-f]{16}$/;
const NAA = /^naa\.(?:[0-9a-f]{16}|[0-9a-f]{32})$/;

/** Brings a name into the form in which names are compared: lower case. */
export function normalizeName(name: string): string {
  return name.normalize('NFKC').toLowerCase();
}

/** Checks a target's name and gives its normal form. @throws {UsageError} INVALID when it is no iqn., eui. or naa. name */
export function checkTargetName(name: string): string {
  const normal = normalizeName(name);
  if (Buffer.byteLength(normal) > MAX_NAME_LENGTH || !(IQN.test(normal) || EUI.test(normal) || NAA.test(normal))) {
    throw new UsageError('INVALID', `"${name}" is no iSCSI name`, {
      help: 'a name looks like iqn.2026-11.com.example:disk, with a month and a reversed domain name',
    });
  }
  return normal;
}

/** Normal form of the name that an initiator gives; undefined when it cannot be one. Its scheme is not looked at. */
export function acceptInitiatorName(name: string): string | undefined {
  const normal = normalizeName(name);
  if (normal === '' || Buffer.byteLength(normal) > MAX_NAME_LENGTH) return undefined;
  return /[\s\u0000-\u001f\u007f,]/.test(normal) ? undefined : normal;
}

/** The initiator port's name: initiator name and session id (RFC 7143 section 4.2.1). */
export function initiatorPortName(initiator: string, isid: Uint8Array): string {
  return `${initiator},i,0x${Buffer.from(isid).toString('hex')}`;
}

/** TransportID of an iSCSI initiator port: format 01b, name with ISID (SPC-4 section 7.6.4.6). */
export function iscsiTransportId(initiatorPort: string): Uint8Array {
  const name = Buffer.from(`${initiatorPort}\0`, 'utf8');
  const length = Math.max(20, (name.length + 3) & ~3);
  const id = new Uint8Array(4 + length);
  id[0] = 0x45; // format 01b, protocol 5
  id[2] = length >> 8;
  id[3] = length & 0xff;
  id.set(name, 4);
  return id;
}

/** What decodeLun gives for an address that no logical unit of ours can have. */
export const NO_LUN = 0xffff;

/**
 * Flat number of the 8-byte LUN field at `at` (SAM-5 section 4.7): peripheral device addressing on bus 0 or flat space
 * addressing, one level. Anything else is NO_LUN, which the device server answers as an absent unit.
 */
export function decodeLun(view: DataView, at: number): number {
  const first = view.getUint32(at);
  if ((first & 0xffff) !== 0 || view.getUint32(at + 4) !== 0) return NO_LUN;
  const method = first >>> 30;
  if (method === 0) return first >>> 24 === 0 ? (first >>> 16) & 0xff : NO_LUN;
  return method === 1 ? (first >>> 16) & 0x3fff : NO_LUN;
}
