import type { ImageHost } from '../../formats/index.ts';
import { parseImageSource } from '../open/name.ts';
import { secretsOf } from '../open/secrets.ts';
import { describe, SILENT } from './log.ts';
import { openExport } from './open-export.ts';
import { requestOf } from './tcmu-handlers.ts';

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
    const secrets = secretFile === undefined ? {} : { secrets: secretsOf(secretFile) };
    const opened = await host.open(image, { format, snapshot, readOnly: true, lock: 'shared', ...secrets });
    await opened.close();
    return undefined;
  } catch (error) {
    return describe(error);
  }
}
