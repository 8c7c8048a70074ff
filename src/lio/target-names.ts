import { createHash } from 'node:crypto';

/** Name of a tcm_loop target: an NAA identifier of type 5 with LIO's OUI, the same for the same seed. */
export function loopbackName(seed: string): string {
  return `naa.5001405${digits('target', seed).slice(0, 9)}`;
}

/** The same for the initiator's end of it. */
export function nexusName(seed: string): string {
  return `naa.5001405${digits('nexus', seed).slice(0, 9)}`;
}

/** A UUID for a unit, the same for the same seed: LIO makes serial number and designator of it. */
export function serialNumber(seed: string): string {
  const hex = digits('serial', seed);
  return [hex.slice(0, 8), hex.slice(8, 12), `5${hex.slice(13, 16)}`, `8${hex.slice(17, 20)}`, hex.slice(20, 32)].join(
    '-',
  );
}

function digits(what: string, seed: string): string {
  return createHash('sha256').update(`lunette lio ${what}\0${seed}`).digest('hex');
}
