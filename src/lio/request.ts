import { LunetteError } from '../../formats/core/errors.ts';

/** A TCMU backstore to be made. */
export interface BackstoreRequest {
  /** As targetcli shows it; unique among the user-space backstores. */
  readonly name: string;
  /** `HANDLER/REST`: what TCMU hands to the program that serves it; escaped already, at most 255 bytes. */
  readonly config: string;
  /** Bytes. */
  readonly size: number;
  /** Logical block size, bytes. */
  readonly blockSize: number;
  /** Unit serial number: LIO makes the NAA designator from it. */
  readonly serial: string;
}

export interface ChapRequest {
  readonly user: string;
  readonly secret: string;
  readonly mutualUser?: string | undefined;
  readonly mutualSecret?: string | undefined;
}

/** A target of the kernel's iSCSI fabric; its backstores become LUN 0, 1, 2… */
export interface IscsiRequest {
  readonly fabric: 'iscsi';
  readonly iqn: string;
  readonly host: string;
  readonly port: number;
  readonly backstores: readonly BackstoreRequest[];
  /** Names of initiators that may log in; none: anybody. */
  readonly initiators: readonly string[];
  readonly chap?: ChapRequest | undefined;
  readonly readOnly: boolean;
}

/** A target of tcm_loop: the units are disks of this machine. */
export interface LoopbackRequest {
  readonly fabric: 'loopback';
  /** `naa.` and 16 hexadecimal digits. */
  readonly wwn: string;
  /** The same for the initiator's end. */
  readonly nexus: string;
  readonly backstores: readonly BackstoreRequest[];
}

export type TargetRequest = IscsiRequest | LoopbackRequest;

const BLANK_OR_SPECIAL = /[\s,\p{Cc}]/u;
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]*$/;
const PATH_SAFE = /^[A-Za-z0-9][A-Za-z0-9.:_-]*$/;
/** The longest dev_config that the kernel keeps, bytes. */
export const MAX_CONFIG_LENGTH = 255;

/**
 * Refuses what configfs would take for something else: names become directories, and `control` is cut at commas and line ends.
 *
 * @throws {LunetteError} INVALID
 */
export function checkRequest(request: TargetRequest): void {
  const check = (good: boolean, what: string, value: string | number): void => {
    if (!good) throw new LunetteError('INVALID', `${JSON.stringify(value)} is no ${what} for the kernel's target`);
  };
  for (const { name, config, size, serial, blockSize } of request.backstores) {
    check(NAME.test(name) && name.length <= 100, 'name of a backstore', name);
    const bytes = Buffer.byteLength(config);
    check(
      !BLANK_OR_SPECIAL.test(config) && config.includes('/') && bytes <= MAX_CONFIG_LENGTH,
      'configuration',
      config,
    );
    check(Number.isSafeInteger(size) && size > 0 && size % blockSize === 0, 'size', size);
    check(blockSize === 512 || blockSize === 2048 || blockSize === 4096, 'block size', blockSize);
    check(/^[A-Za-z0-9-]{1,64}$/.test(serial), 'serial number', serial);
  }
  if (request.fabric === 'loopback') {
    for (const name of [request.wwn, request.nexus]) check(/^naa\.[0-9a-f]{16}$/.test(name), 'NAA name', name);
    return;
  }
  check(PATH_SAFE.test(request.iqn), 'name of a target', request.iqn);
  check(/^[0-9A-Fa-f.:]+$/.test(request.host), 'address (not a host name)', request.host);
  check(Number.isInteger(request.port) && request.port > 0 && request.port < 65536, 'port', request.port);
  for (const initiator of request.initiators) check(PATH_SAFE.test(initiator), 'name of an initiator', initiator);
  const { chap } = request;
  for (const text of [chap?.user, chap?.secret, chap?.mutualUser, chap?.mutualSecret]) {
    // Not shown: it may be the secret. The kernel's fields have 256 bytes.
    if (text !== undefined && (text === '' || Buffer.byteLength(text) > 255 || /[\p{Cc}]/u.test(text))) {
      throw new LunetteError('INVALID', "a CHAP name or secret that the kernel's target cannot hold");
    }
  }
}
