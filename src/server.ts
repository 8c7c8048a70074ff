/** Lunette's server side as a library: `import { ImageServer } from 'lunette/server'`. The command line is built on the same. */
export type { Address } from './daemon/address.ts';
export { checkServerOptions, ImageServer, type ImageServerOptions, type ServedImage } from './daemon/image-server.ts';
export type { ServerLog } from './daemon/log.ts';
export {
  checkNbdOptions,
  NbdImageServer,
  type NbdImageServerOptions,
  type ServedNbdImage,
} from './daemon/nbd-image-server.ts';
export type { ExportRequest } from './daemon/open-export.ts';
export type { ChapCredentials } from './iscsi/chap.ts';
export type { TlsFiles } from './nbd/tls.ts';
export type { NbdAddress } from './nbd/uri.ts';
export type { UnitIdentity } from './scsi/identity.ts';
