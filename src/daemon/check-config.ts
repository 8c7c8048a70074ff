import { accessSync, constants } from 'node:fs';
import { codeOf, fromSystemError } from '../../formats/core/errors.ts';
import type { ImageHost } from '../../formats/index.ts';
import { parseImageSource } from '../open/name.ts';
import { secretsOf } from '../open/secrets.ts';
import { describe, SILENT } from './log.ts';
import { openExport } from './open-export.ts';
import { requestOf, type TcmuRequest } from './tcmu-handlers.ts';

/**
 * What is wrong with a device's configuration; undefined: nothing.
 *
 * @param trusted whoever asks may learn whether its image can be opened
 */
export async function checkConfig(
  host: ImageHost,
  handler: string,
  config: string,
  trusted: boolean,
): Promise<string | undefined> {
  try {
    const request = requestOf(config);
    if (!config.startsWith(`${handler}/`))
      return `this is the handler ${handler}: the configuration must begin with ${handler}/`;
    if (!trusted) return undefined;
    const { image, format, snapshot, secretFile } = request;
    if (parseImageSource(image).kind !== 'file') {
      const remote = await openExport(host, { ...request, readOnly: true }, SILENT);
      await remote.image.close();
      return undefined;
    }
    checkWritable(request);
    const secrets = secretFile === undefined ? {} : { secrets: secretsOf(secretFile) };
    const opened = await host.open(image, { format, snapshot, readOnly: true, lock: 'shared', ...secrets });
    await opened.close();
    return undefined;
  } catch (error) {
    return describe(error);
  }
}

/** What can be read cannot always be written: to a service of systemd most of the file system is read-only. */
function checkWritable({ image, readOnly, snapshot, overlay }: TcmuRequest): void {
  if (readOnly === true || snapshot !== undefined || overlay !== undefined) return;
  try {
    accessSync(image, constants.W_OK);
  } catch (cause) {
    const error = fromSystemError(cause, 'opening it for writing', { path: image });
    if (codeOf(error) === 'NOT_FOUND') return; // Opening it says so.
    error.help =
      'Add ;readonly, or let the daemon write there: as a service it may in the directories of `allow` in its configuration (lunette daemon --print-drop-in).';
    throw error;
  }
}
