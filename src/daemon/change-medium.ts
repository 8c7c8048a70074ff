import type { TcmuDisk } from './tcmu-disk.ts';

/** A new disc for a drive, as targetcli asks for it. */
export interface MediumRequest {
  /** The handler that was asked, and the device's name in it. */
  readonly handler: string;
  readonly device: string;
  /** Bytes, as the kernel shall show it. */
  readonly size: number;
  /** `HANDLER/IMAGE…`, or what stands behind the handler. */
  readonly config: string;
}

/**
 * Changes the disc of an optical unit. The kernel has to know its name, for whoever saves the configuration or serves the device next: so it
 * is told, and asks us to change the disc.
 *
 * @param check says what is wrong with a configuration; undefined: nothing
 * @returns why not; undefined: done
 */
export async function changeMedium(
  disk: TcmuDisk | undefined,
  { handler, device, size, config }: MediumRequest,
  check: (config: string) => Promise<string | undefined>,
): Promise<string | undefined> {
  const given = config.startsWith(`${handler}/`) ? config : `${handler}/${config}`;
  if (disk === undefined) return `there is no device ${device} of user:${handler} that is served`;
  if (!disk.optical) return `${device} is a disk: only the disc of an optical unit can be changed`;
  if (disk.mediumHeld) return `${device}: an initiator keeps the disc in: unmount it there first`;
  const problem = await check(given);
  if (problem !== undefined) return problem;
  await disk.backstore.announce('dev_size', String(size));
  await disk.backstore.announce('dev_config', given);
  return undefined;
}
