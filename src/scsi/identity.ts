import { createHash } from 'node:crypto';

/** What a logical unit is called: all of it follows from one stable string, so that it is the same after every restart. */
export interface UnitIdentity {
  /** Unit serial number, VPD page 80h: 20 hexadecimal digits. */
  readonly serial: string;
  /** NAA locally assigned designator (SPC-4 section 7.8.6.6.5), 8 bytes. */
  readonly naa: Uint8Array;
  /** T10 vendor identification, 8 characters or fewer. */
  readonly vendor: string;
  /** Product identification, 16 characters or fewer. */
  readonly product: string;
  /** Product revision, 4 characters or fewer. */
  readonly revision: string;
}

export interface IdentityOptions {
  vendor?: string | undefined;
  product?: string | undefined;
  revision?: string | undefined;
}

/**
 * Derives a unit's identity by hash: nothing of the seed can be read from it, so the seed may hold a path.
 *
 * @param seed unique per unit and stable, e.g. target name, LUN and the image's own id
 */
export function deriveIdentity(seed: string, options: IdentityOptions = {}): UnitIdentity {
  const hash = createHash('sha256').update('lunette scsi unit\0').update(seed).digest();
  const naa = new Uint8Array(hash.subarray(0, 8));
  naa[0] = 0x30 | ((naa[0] as number) & 0x0f);
  return {
    serial: hash.subarray(8, 18).toString('hex'),
    naa,
    vendor: options.vendor ?? 'LUNETTE',
    product: options.product ?? 'VIRTUAL DISK',
    revision: options.revision ?? '1',
  };
}
