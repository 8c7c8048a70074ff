import type { UnitIdentity } from '../scsi/identity.ts';

/** NAA 6 and the company id of the Linux target: what the kernel's own backstores begin with. */
const PREFIX = '6001405';
const NAA_DIGITS = 32;

/** What standard INQUIRY data says: multipath rules of initiators know it. */
export const LIO_NAMES = { vendor: 'LIO-ORG', product: 'TCMU device', revision: '0002' } as const;

/**
 * What a unit is called by the serial number that LIO gave it: as the kernel's own backstores and tcmu-runner derive it, so that
 * /dev/disk/by-id of initiators stays the same when a configuration moves between them.
 *
 * @param serial `wwn/vpd_unit_serial`, usually a UUID
 */
export function identityBySerial(serial: string): UnitIdentity {
  const digits = (PREFIX + serial.toLowerCase().replace(/[^0-9a-f]/g, '')).padEnd(NAA_DIGITS, '0').slice(0, NAA_DIGITS);
  return {
    serial,
    naa: new Uint8Array(Buffer.from(digits, 'hex')),
    ...LIO_NAMES,
  };
}
